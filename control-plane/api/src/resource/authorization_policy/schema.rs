//! The schema of an AuthorizationPolicy's spec.
use super::super::name::{MAX_LABEL_BYTES, MAX_SUBDOMAIN_BYTES};
use super::super::node::PORTS;
use super::super::schema::Schema;
use super::{
    ACTIONS, AuthorizationPolicy, CALLER, CONDITION, DEFAULT_MODE, IP_BLOCKS_BESIDE_IDENTITY, MAX_HEADER_VALUE_BYTES,
    MODES, OPERATION, RULE, SPEC, Target,
};
use crate::policy::path::MAX_METHOD_BYTES;
use crate::policy::pattern::MAX_PATTERN_BYTES;

/// Bytes of the longest address block: an IPv6 address that ends as IPv4, and its prefix length.
const MAX_IP_BLOCK_BYTES: usize = 49;

impl AuthorizationPolicy {
    /// The schema of the spec.
    pub(crate) fn schema() -> Schema {
        let [target_refs, selector] = Target::schemas();
        let spec = Schema::object(
            "Who may call what. Items of a list are alternatives, fields of one item must all hold, and a field that is \
             left out does not matter.",
            &SPEC,
            &["action"],
            [
                target_refs,
                selector,
                (
                    "action",
                    Schema::one_of(
                        "`Allow`: once such a policy applies to a workload, calls that no rule of any Allow policy \
                         matches are refused. `Deny`: refuses what a rule matches, whatever else allows it.",
                        ACTIONS,
                    ),
                ),
                (
                    "mode",
                    Schema::one_of(
                        "`Enforce`: takes effect. `Shadow`: refuses nothing; what it would refuse is counted as \
                         `shadow_deny` in `weft_authorization_decisions_total`.",
                        MODES,
                    )
                    .default(DEFAULT_MODE.0),
                ),
                (
                    "rules",
                    Schema::list(
                        "The rules. Without one an Allow policy allows nothing, and a Deny policy refuses everything it \
                         applies to.",
                        0,
                        rule(),
                    ),
                ),
            ],
        );
        Target::restrict(spec)
    }
}

fn rule() -> Schema {
    let from = Schema::list("Who calls: one of these. Left out: anyone.", 1, caller());
    let to = Schema::list("What is called: one of these. Left out: anything.", 1, operation());
    let when = Schema::list("What else must hold of the request: all of these.", 1, condition());
    Schema::object(
        "Matches a call when `from`, `to` and `when` all do. Without a field it matches every call.",
        &RULE,
        &[],
        [("from", from), ("to", to), ("when", when)],
    )
}

fn caller() -> Schema {
    let account = Schema::text(
        "`name` of the policy's namespace, or `namespace/name`. No wildcards.",
        1..=MAX_LABEL_BYTES + "/".len() + MAX_SUBDOMAIN_BYTES,
    );
    let namespace = Schema::text("Name of a namespace.", 1..=MAX_LABEL_BYTES);
    let identity = Schema::text("A SPIFFE ID or a pattern of them.", 1..=MAX_PATTERN_BYTES);
    let block = Schema::text("A block such as `10.0.0.0/8`, or one address.", 1..=MAX_IP_BLOCK_BYTES);
    Schema::object(
        "Callers that have all that is written here.",
        &CALLER,
        &[],
        [
            ("serviceAccounts", Schema::list("Service accounts that callers in the mesh run under.", 1, account)),
            ("namespaces", Schema::list("Namespaces of callers in the mesh.", 1, namespace)),
            (
                "identities",
                Schema::list(
                    "SPIFFE IDs, such as `spiffe://cluster.local/ns/shop/sa/*`. `*` may stand at the end, or as a whole \
                     segment of the path; `*` alone is every mesh identity.",
                    1,
                    identity,
                ),
            ),
            (
                "ipBlocks",
                Schema::list(
                    "Addresses of callers without a mesh identity. Not beside the other fields: write an item of its own.",
                    1,
                    block,
                ),
            ),
        ],
    )
    .not_empty()
    .rule(
        "!has(self.ipBlocks) || !(has(self.serviceAccounts) || has(self.namespaces) || has(self.identities))",
        "",
        &IP_BLOCKS_BESIDE_IDENTITY,
    )
}

fn operation() -> Schema {
    let port = Schema::integer("Number of a port.", PORTS);
    let method = Schema::text("A method, such as `GET`.", 1..=MAX_METHOD_BYTES);
    let path = Schema::text("A path or a pattern of paths.", 1..=MAX_PATTERN_BYTES);
    let host = Schema::text("A host or a pattern of hosts.", 1..=MAX_PATTERN_BYTES);
    Schema::object(
        "Calls that have all that is written here.",
        &OPERATION,
        &[],
        [
            ("ports", Schema::list("Ports of the workload, not of the Service.", 1, port)),
            ("methods", Schema::list("HTTP methods in upper case.", 1, method)),
            (
                "paths",
                Schema::list(
                    "HTTP paths in normal form. `/stock`: that path. `/stock/*`: what is below. `/stock*`: what begins \
                     so. `{name}`: one whole segment.",
                    1,
                    path,
                ),
            ),
            ("hosts", Schema::list("HTTP hosts without port: a host, or `*.host` for every name below it.", 1, host)),
        ],
    )
    .not_empty()
}

fn condition() -> Schema {
    let value = Schema::text("Visible ASCII characters without comma.", 1..=MAX_HEADER_VALUE_BYTES);
    Schema::object(
        "A header has one of the values. Each value of each line counts, split at commas.",
        &CONDITION,
        &["header", "in"],
        [
            ("header", Schema::any_text("Name of an HTTP header, such as `x-tenant`.")),
            (
                "in",
                Schema::list(
                    "The values. An Allow rule matches when there is one and all are listed, a Deny rule when any is \
                     listed.",
                    1,
                    value,
                ),
            ),
        ],
    )
}
