//! What is refused, at which line, and what the user is told to write instead.
mod common;

use weft_api::resource::{MAX_TEXT_BYTES, Resource, ResourceError, parse_documents};

use common::schema::{faults, read, schema_of};

fn refusal(text: &str) -> ResourceError {
    let mut resources = parse_documents(text);
    assert_eq!(resources.len(), 1, "{text}\n{resources:?}");
    match resources.remove(0) {
        Err(error) => error,
        Ok(resource) => panic!("{text}\nwas accepted as {resource:?}"),
    }
}

/// Each row: a document, the line at fault, what the message holds, what the remedy holds.
fn check(rows: &[(&str, usize, &str, &str)]) {
    for (text, line, message, remedy) in rows {
        let error = refusal(text);
        assert!(error.message.contains(message), "{text}\n{error}\nlacks {message:?}");
        assert!(error.remedy.contains(remedy), "{text}\n{error}\nlacks {remedy:?}");
        assert_eq!(error.line, *line, "{text}\n{error}");
    }
}

/// The same of an AuthorizationPolicy's spec, which begins at line 5.
fn check_policies(kind: &str, rows: &[(&str, usize, &str, &str)]) {
    for (spec, line, message, remedy) in rows {
        let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
        let text = format!(
            "apiVersion: policy.weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\nspec:\n{spec}"
        );
        check(&[(&text, *line, message, remedy)]);
        let error = refusal(&text);
        assert_eq!(error.kind, Some(kind));
        assert_eq!(error.name.unwrap().to_string(), "shop/p");
        check_schema(kind, &text, &error.message);
    }
}

/// What is missing, empty, of another type or out of range is refused by the schema too, whether a webhook is there or
/// not.
fn check_schema(kind: &str, text: &str, message: &str) {
    let claimed = [
        "is missing",
        "is empty",
        "is an empty list",
        "must be a",
        "must be true or false",
        "is out of range",
        "names nobody",
        "names nothing",
        "names no label",
        " items",
        "is too long",
    ];
    if claimed.iter().any(|claimed| message.contains(claimed)) {
        assert_ne!(faults(&schema_of(kind), &read(text)), [""; 0], "{text}\n{message}");
    }
}

#[test]
fn an_error_shows_line_kind_name_fault_and_remedy() {
    let error = refusal(
        "---\napiVersion: policy.weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\nspec:\n  action: Allow\n  rules:\n  - to:\n    - pathss: [/a]\n",
    );
    assert_eq!(
        error.to_string(),
        "line 10: AuthorizationPolicy default/p: `pathss` in `spec.rules[0].to[0]` is not a field. Write `paths`."
    );
}

#[test]
fn a_document_that_is_no_resource_is_refused() {
    let kinds = "he kinds are `AuthorizationPolicy`, `GRPCRoute`, `HTTPRoute`, `Namespace`, `RateLimitPolicy`, `ReferenceGrant`, \
                 `Service` and `Workload`.";
    check(&[
        ("", 1, "holds no resource", "delete the file"),
        ("# nothing\n---\n---\n", 1, "holds no resource", "delete the file"),
        ("hello", 1, "is not a resource", "Write `apiVersion`, `kind` and `metadata`."),
        ("- a\n- b", 1, "is not a resource", "Write"),
        ("{}", 1, "`kind` is missing", "one of `AuthorizationPolicy`"),
        ("kind: [a]", 1, "`kind` must be a text, not a list", "one text"),
        (
            "apiVersion: v1\nkind: Servce\nmetadata: {name: a}",
            2,
            "`Servce`, which is not a known kind",
            "Write `Service`.",
        ),
        ("apiVersion: v1\nkind: Widget", 2, "`Widget`, which is not a known kind", kinds),
        ("kind: Workload", 1, "`apiVersion` is missing", "Write `apiVersion: policy.weft.dev/v1alpha1`."),
        ("apiVersion: policy.weft.dev/v1\nkind: Workload", 1, "`policy.weft.dev/v1`", "`policy.weft.dev/v1alpha1`"),
        ("apiVersion: v1\nkind: AuthorizationPolicy", 1, "`v1`", "`policy.weft.dev/v1alpha1`"),
        ("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy", 1, "istio", "`policy.weft.dev/v1alpha1`"),
        ("apiVersion: policy.weft.dev/v1alpha1\nkind: Deployment", 2, "not a known kind", kinds),
        ("apiVersion: policy.weft.dev/v1alpha1\nkind: PeerAuthentication", 2, "not supported by this version", kinds),
        (
            "apiVersion: gateway.networking.k8s.io/v2\nkind: HTTPRoute",
            1,
            "k8s.io/v2`",
            "`gateway.networking.k8s.io/v1`",
        ),
        ("apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute", 1, "`metadata` is missing", "name"),
        ("apiVersion: v1\nkind: Namespace", 1, "`metadata` is missing", "name"),
        ("apiVersion: v1\nkind: Namespace\nmetadata:", 3, "`metadata` is empty", "Write its fields"),
        ("apiVersion: v1\nkind: Namespace\nmetadata: {}", 3, "`metadata.name` is missing", "Write a name"),
    ]);
}

#[test]
fn names_and_fields_of_a_document_are_checked() {
    let workload = |metadata: &str| {
        format!(
            "apiVersion: policy.weft.dev/v1alpha1\nkind: Workload\nmetadata:\n  {metadata}\nspec: {{addresses: [10.0.0.1]}}"
        )
    };
    let long = "a".repeat(254);
    let rows = [
        ("name: Orders_1", 4, "is `Orders_1`, which is not a valid name", "such as `orders-1`"),
        ("name: -a", 4, "`-a`", "such as `a`"),
        ("name: ''", 4, "is ``", "lower-case"),
        ("name: 7", 4, "`metadata.name` must be a text, not the number `7`", "quotation marks"),
        ("name: \"a\\u001b[31m\"", 4, r"`a\u{1b}[31m`", "lower-case"),
        (&format!("name: {long}"), 4, "aaa…`", "253"),
        ("{name: a, namespace: a.b}", 4, "`metadata.namespace` is `a.b`", "such as `a-b`"),
        ("{name: a, labls: {}}", 4, "`labls` in `metadata` is not a field", "Write `labels`."),
        ("{name: a, labels: {app: 1}}", 4, "`metadata.labels.app` must be a text", "quotation marks"),
        ("{name: a, labels: {app: 'a b'}}", 4, "`app`: `a b`, which is not a label", "letters"),
        ("{name: a, labels: {'/app': a}}", 4, "not a label", "`domain/`"),
        ("{name: a, labels: [a]}", 4, "`metadata.labels` must be an object", "`name: value`"),
    ];
    for (metadata, line, message, remedy) in rows {
        check(&[(&workload(metadata), line, message, remedy)]);
    }
    check(&[(
        "apiVersion: policy.weft.dev/v1alpha1\nkind: Workload\nmetadata: {name: a}\nspeck: {}",
        4,
        "`speck` in the document is not a field",
        "Write `spec`.",
    )]);
}

#[test]
fn a_workload_with_a_fault_is_refused() {
    check_policies(
        "Workload",
        &[
            ("{}", 5, "`spec.addresses` is missing", "List the workload's IP addresses."),
            ("addresses: []", 5, "empty list", "list something"),
            ("addresses: 10.0.0.1", 5, "must be a list, not the text `10.0.0.1`", "`- `"),
            ("addresses:\n- a.test", 6, "`spec.addresses[0]` is `a.test`", "such as `10.1.2.3`"),
            ("addresses: [10.0.0.1:80]", 5, "not an IP address", "without port"),
            ("addresses: [10.0.0.1/32]", 5, "not an IP address", "prefix length"),
            ("addresses: [0.0.0.0]", 5, "where no workload can be", "own address"),
            ("addresses: [224.0.0.1]", 5, "where no workload can be", "own address"),
            ("addresses: [10.0.0.1, '::ffff:10.0.0.1']", 5, "repeats 10.0.0.1", "once"),
            ("addresses: [10.0.0.1]\nmesh: yes", 6, "`spec.mesh` must be true or false", "`true`"),
            ("addresses: [10.0.0.1]\nserviceaccount: a", 6, "`serviceaccount`", "Write `serviceAccount`."),
            ("addresses: [10.0.0.1]\nserviceAccount: b/a", 6, "not a valid name", "such as `b-a`"),
            ("addresses: [10.0.0.1]\nports: [{port: 0}]", 6, "is 0, which is out of range", "from 1 to 65535"),
            ("addresses: [10.0.0.1]\nports: [{port: 65536}]", 6, "65536", "from 1 to 65535"),
            ("addresses: [10.0.0.1]\nports: [{port: 80.5}]", 6, "must be a whole number", "from 1 to 65535"),
            ("addresses: [10.0.0.1]\nports: [{port: '80'}]", 6, "not the text `80`", "whole number"),
            ("addresses: [10.0.0.1]\nports: [{name: a}]", 6, "`spec.ports[0].port` is missing", "number"),
            ("addresses: [10.0.0.1]\nports: [{port: 80}, {port: 80}]", 6, "repeats", "once"),
        ],
    );
}

#[test]
fn a_core_resource_is_refused_for_what_the_mesh_reads_of_it() {
    let service = |spec: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {spec}");
    let annotated = |annotation: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  annotations:\n    weft.dev/port-protocols: '{annotation}'\nspec: {{}}"
        )
    };
    let set = |annotation: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  annotations:\n    weft.dev/{annotation}\nspec: {{}}"
        )
    };
    let rows: &[(&str, usize, &str, &str)] = &[
        (&set("request-timeout: '15'"), 6, "`15`, which is no time", "`500ms`, `15s` or `5m`, or `0s` for no limit"),
        (&set("request-timeout: 25h"), 6, "`25h`, which is no time", "up to 24h"),
        (&set("connect-timeout: 0s"), 6, "`0s`, which is no time", "`5m`."),
        (&set("max-connections: '0'"), 6, "`0`, which is not in the range", "from 1 to 1000000"),
        (&set("max-requests: '-1'"), 6, "`-1`", "from 1 to 1000000"),
        (&set("max-pending-requests: many"), 6, "`many`", "from 1 to 1000000"),
        (&set("retry-budget: 20%"), 6, "`20%`", "from 0 to 100"),
        (&set("eject-after: '1001'"), 6, "`1001`", "from 0 to 1000"),
        (&service("{ports: [{}]}"), 4, "`spec.ports[0].port` is missing", "port"),
        (&service("{ports: [{port: 80}, {port: 80}]}"), 4, "repeats the TCP port 80", "once"),
        (&service("{ports: [{port: 80, targetPort: A_B}]}"), 4, "`A_B`", "such as `a-b`"),
        (&service("{clusterIP: x}"), 4, "`x`, which is not an address", "`None`"),
        (&service("{selector: [a]}"), 4, "must be an object", "`name: value`"),
        (&annotated("80"), 6, "`80`, which declares no port", "`8080=http"),
        (&annotated("80=htttp"), 6, "`80=htttp`", "3306=tcp`"),
        (&annotated("0=http"), 6, "`0=http`", "such as"),
        (&annotated("80=http,80=tcp"), 6, "`80=tcp`", "such as"),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  annotations:\n    weft.dev/default-policy: denny",
            6,
            "is `denny`, which is no default policy",
            "Write `deny`.",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, annotations: {weft.dev/default-policy: \"\"}}",
            3,
            "no default policy",
            "Write `deny`, `authenticated` or `allow`.",
        ),
    ];
    check(rows);
}

#[test]
fn an_authorization_policy_with_a_fault_is_refused() {
    let allow = |rule: &str| format!("action: Allow\nrules:\n- {rule}");
    let rows: &[(&str, usize, &str, &str)] = &[
        // 123: misspelt, wrong type, empty
        ("{}", 5, "`spec.action` is missing", "`action: Allow` or `action: Deny`"),
        ("action: ALLOW", 5, "is `ALLOW`", "`Allow` or `Deny`"),
        ("action: Allow\nrule: []", 6, "`rule` in `spec` is not a field", "Write `rules`."),
        ("action: Allow\nzzzzzz: 1", 6, "`zzzzzz`", "The fields here are `targetRefs`, `selector`"),
        ("action: Allow\nrules: {}", 6, "must be a list, not an object", "`- `"),
        ("action: Allow\nrules:", 6, "`spec.rules` is empty", "Leave the field out"),
        (&allow("frm: []"), 7, "`frm`", "Write `from`."),
        (&allow("to: [{pathss: [/a]}]"), 7, "`pathss` in `spec.rules[0].to[0]`", "Write `paths`."),
        (&allow("to: [{method: [GET]}]"), 7, "`method`", "Write `methods`."),
        (&allow("from: [{principals: [a]}]"), 7, "`principals`", "The fields here are `serviceAccounts`"),
        // 124: empty lists and items
        (&allow("from: []"), 7, "`spec.rules[0].from` is an empty list", "Leave the field out"),
        (&allow("from:"), 7, "`spec.rules[0].from` is empty", "Leave the field out"),
        (&allow("to: []"), 7, "empty list", "Leave the field out"),
        (&allow("when: []"), 7, "empty list", "Leave the field out"),
        (&allow("from: [{}]"), 7, "names nobody", "Leave `from` out"),
        (&allow("to: [{}]"), 7, "names nothing", "Leave `to` out"),
        (&allow("from: [{serviceAccounts: []}]"), 7, "empty list", "Leave the field out"),
        (&allow("to: [{paths: []}]"), 7, "empty list", "Leave the field out"),
        (&allow("to: [{ports: null}]"), 7, "is empty", "Leave the field out"),
        ("action: Deny\ntargetRefs: []", 6, "empty list", "Leave the field out"),
        ("action: Deny\nselector: {}", 6, "`spec.selector.matchLabels` is missing", "leave `selector` out"),
        ("action: Deny\nselector: {matchLabels: {}}", 6, "names no label", "leave `selector` out"),
        // 127: beyond its own namespace
        ("action: Deny\ntargetRefs: [{kind: Service, name: a, namespace: b}]", 6, "own namespace only", "Leave it out"),
        ("action: Deny\ntargetRefs: [{kind: Service, name: b/a}]", 6, "own namespace only", "the name alone"),
        ("action: Deny\ntargetRefs: [{kind: Pod, name: a}]", 6, "is `Pod`", "`selector` for workloads"),
        ("action: Deny\ntargetRefs: [{name: a}]", 6, "kind` is missing", "`kind: Service`"),
        ("action: Deny\ntargetRefs: [{kind: Service, name: a, group: apps}]", 6, "is `apps`", "Leave it out"),
        (
            "action: Deny\ntargetRefs: [{kind: Service, name: a}]\nselector: {matchLabels: {a: b}}",
            7,
            "cannot stand beside `targetRefs`",
            "Keep one",
        ),
        // 129: wildcards and patterns
        (&allow("from: [{serviceAccounts: ['*']}]"), 7, "wildcards have no meaning here", "`identities` such as"),
        (&allow("from: [{serviceAccounts: ['a/b/c']}]"), 7, "not a name", "`namespace/name`"),
        (&allow("from: [{namespaces: ['*']}]"), 7, "not a valid name", "Write 1 to 63"),
        (
            &allow("from: [{identities: ['spiffe://*/ns/x/*']}]"),
            7,
            "has `*` in its trust domain",
            "Name the trust domain",
        ),
        (&allow("from: [{identities: ['spiffe://cluster*']}]"), 7, "is not a SPIFFE ID", "such as `spiffe://"),
        (&allow("from: [{identities: ['spiffe://a/ns/**']}]"), 7, "has `*` where it has no meaning", "whole segment"),
        (&allow("from: [{identities: ['spiffe://a/n*s/b']}]"), 7, "has `*` where it has no meaning", "whole segment"),
        (&allow("from: [{identities: ['*suffix']}]"), 7, "is not a SPIFFE ID", "such as"),
        (&allow("from: [{identities: [orders]}]"), 7, "is not a SPIFFE ID", "such as"),
        (&allow("from: [{identities: ['spiffe://a']}]"), 7, "is not a SPIFFE ID", "such as"),
        (&allow("to: [{paths: ['/a*b']}]"), 7, "has `*` where it has no meaning", "at the end only"),
        (&allow("to: [{paths: ['/**']}]"), 7, "has `*` where it has no meaning", "at the end only"),
        (&allow("to: [{paths: ['*/a']}]"), 7, "has `*` where it has no meaning", "at the end only"),
        (&allow("to: [{paths: [a/b]}]"), 7, "does not begin with `/`", "Write `/a/b`."),
        (&allow("to: [{paths: ['']}]"), 7, "is empty", "such as `/stock`"),
        (&allow("to: [{paths: ['/a/../b']}]"), 7, "not in the normal form", "Write `/b`."),
        (&allow("to: [{paths: ['/%61/*']}]"), 7, "not in the normal form", "Write `/a/*`."),
        (&allow("to: [{paths: ['/a%2fb']}]"), 7, "no single reading", "encoded slash"),
        (&allow("to: [{paths: ['/a?b=c']}]"), 7, "query", "path alone"),
        (&allow("to: [{paths: ['/{a}b']}]"), 7, "braces", "`{id}`"),
        (&allow("to: [{paths: ['/{}']}]"), 7, "braces", "`{id}`"),
        (&allow("to: [{paths: ['/{a}*']}]"), 7, "`*` right after", "`{name}/*`"),
        (&allow("to: [{hosts: ['*']}]"), 7, "has `*` where it has no meaning", "leave `hosts` out"),
        (&allow("to: [{hosts: ['a.*']}]"), 7, "has `*` where it has no meaning", "at the start only"),
        (&allow("to: [{hosts: ['a.test:80']}]"), 7, "has a port", "under `ports`"),
        (&allow("to: [{hosts: ['a/b']}]"), 7, "is not a host", "such as"),
        (&allow("to: [{methods: [get]}]"), 7, "no method in upper case", "Write `GET`."),
        (&allow("to: [{methods: ['*']}]"), 7, "is `*`", "Leave `methods` out"),
        (&allow("to: [{ports: [0]}]"), 7, "out of range", "from 1 to 65535"),
        (&allow("to: [{ports: ['80-90']}]"), 7, "whole number", "from 1 to 65535"),
        (&allow("from: [{ipBlocks: [10.0.0.1/8]}]"), 7, "bits beyond its prefix", "Write `10.0.0.0/8`"),
        (&allow("from: [{ipBlocks: ['::ffff:10.0.0.0/104']}]"), 7, "IPv4 address in IPv6", "as IPv4"),
        (&allow("from: [{ipBlocks: [all]}]"), 7, "not an address block", "such as `10.0.0.0/8`"),
        (&allow("from: [{ipBlocks: [10.0.0.0/8], namespaces: [a]}]"), 7, "without mesh identity", "two items"),
        // conditions
        (&allow("when: [{header: 'a b', in: [c]}]"), 7, "no header name", "such as `x-tenant`"),
        (&allow("when: [{header: Host, in: [c]}]"), 7, "is `host`", "hosts"),
        (&allow("when: [{header: X-Forwarded-Client-Cert, in: [c]}]"), 7, "claims", "`from`"),
        (&allow("when: [{header: a}]"), 7, "in` is missing", "List the values"),
        (&allow("when: [{header: a, in: ['b,c']}]"), 7, "no single header value", "without comma"),
        (&allow("when: [{header: a, in: ['']}]"), 7, "no single header value", "1 to 1024"),
        (&allow("when: [{header: a, in: [1]}]"), 7, "not the number `1`", "quotation marks"),
        // of the design, not of this version
        ("action: Allow\nmode: Staged", 6, "`Staged`, which is not supported by this version", "Write `Shadow`"),
        (
            "action: Allow\nexpiresAt: 2027-01-31T00:00:00Z",
            6,
            "`spec.expiresAt` is not supported by this version",
            "Leave it out",
        ),
        (&allow("to: [{grpc: [{service: a}]}]"), 7, "not supported by this version", "Leave it out"),
        (&allow("to: [{notPaths: [/a]}]"), 7, "not supported by this version", "Leave it out"),
        (&allow("from: [{notNamespaces: [a]}]"), 7, "not supported by this version", "Leave it out"),
        (&allow("when: [{claim: scope, contains: a}]"), 7, "not supported by this version", "Leave it out"),
        ("action: Deny\nselector: {matchExpressions: []}", 6, "not supported by this version", "`matchLabels`"),
    ];
    check_policies("AuthorizationPolicy", rows);
    let long_path = allow(&format!("to: [{{paths: ['/{}']}}]", "a".repeat(1_024)));
    let many_rules = format!("action: Allow\nrules: [{}]", "{},".repeat(1_001));
    check_policies(
        "AuthorizationPolicy",
        &[(&long_path, 7, "is too long", "at most 1024 bytes"), (&many_rules, 6, "has 1001 items", "at most 1000")],
    );
}

#[test]
fn a_regular_expression_is_a_literal_or_refused_never_a_pattern() {
    let rule = |path: &str| {
        format!(
            "{{apiVersion: policy.weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: p}}, spec: {{action: Allow, rules: [{{to: [{{paths: ['{path}']}}]}}]}}}}"
        )
    };
    for path in ["(a+)+$", "/a{1000}{1000}", "/(?=a)*b", "^/admin"] {
        refusal(&rule(path));
    }
    let Ok(Resource::AuthorizationPolicy(policy)) = parse_documents(&rule("/(a+)+$")).remove(0) else { panic!() };
    let pattern = &policy.rules[0].to[0].paths[0];
    assert!(pattern.matches("/(a+)+$") && !pattern.matches("/aaa"));
}

#[test]
fn a_rate_limit_policy_with_a_fault_is_refused() {
    let limit = |fields: &str| format!("limits:\n- {{name: a, {fields}}}");
    let rows: &[(&str, usize, &str, &str)] = &[
        ("{}", 5, "`spec.limits` is missing", "one limit"),
        ("limits: []", 5, "empty list", "list something"),
        (&limit("window: 1s"), 6, "requests` is missing", "how many"),
        (&limit("requests: 1"), 6, "window` is missing", "such as `1s`"),
        (&limit("requests: 0, window: 1s"), 6, "is 0, which is out of range", "from 1 to 1000000"),
        (&limit("requests: -1, window: 1s"), 6, "is -1", "from 1 to 1000000"),
        (&limit("requests: 1000001, window: 1s"), 6, "out of range", "from 1 to 1000000"),
        (&limit("requests: 4294967296, window: 1s"), 6, "out of range", "from 1 to 1000000"),
        (&limit("requests: 18446744073709551616, window: 1s"), 6, "`spec.limits[0].requests`", "from 1 to 1000000"),
        (&limit("requests: 1.5, window: 1s"), 6, "whole number, not the number `1.5`", "from 1 to"),
        (&limit("requests: 1e3, window: 1s"), 6, "whole number", "from 1 to"),
        (&limit("requests: '5', window: 1s"), 6, "whole number", "from 1 to"),
        (&limit("requests: 1, window: 1"), 6, "has no unit", "such as `1s`"),
        (&limit("requests: 1, window: 0s"), 6, "not a window", "from `1ms` to `24h`"),
        (&limit("requests: 1, window: 25h"), 6, "not a window", "from `1ms` to `24h`"),
        (&limit("requests: 1, window: 1.5s"), 6, "not a window", "whole number"),
        (&limit("requests: 1, window: -1s"), 6, "not a window", "whole number"),
        (&limit("requests: 1, window: 99999999999999999999s"), 6, "not a window", "whole number"),
        (&limit("requests: 1, window: 18446744073709551615h"), 6, "not a window", "whole number"),
        (&limit("requests: 1, window: 1 s"), 6, "not a window", "whole number"),
        (&limit("requests: 1, window: 1s, burst: 0"), 6, "is 0", "from 1 to 1000000"),
        (&limit("requests: 1, window: 1s, per: client"), 6, "is `client`", "`Client` or `All`"),
        (
            &limit("requests: 1, window: 1s, per: {header: x-tenant}"),
            6,
            "not supported by this version",
            "`Client` or `All`",
        ),
        (&limit("requests: 1, window: 1s, scope: Service"), 6, "not supported by this version", "`Pod`"),
        (&limit("requests: 1, window: 1s, burts: 2"), 6, "`burts`", "Write `burst`."),
        ("limits:\n- {requests: 1, window: 1s}", 6, "name` is missing", "Give the limit a name"),
        (
            "limits:\n- {name: a, requests: 1, window: 1s}\n- {name: a, requests: 2, window: 1s}",
            7,
            "repeats the name `a`",
            "its own name",
        ),
        (
            "limits:\n- {name: a, requests: 2, window: 1s, per: Client}\n- {name: b, requests: 119, window: 1m}",
            6,
            "allows one client more (`a`) than all together (`b`)",
            "Lower",
        ),
    ];
    let mut rows = rows.to_vec();
    // The whole spec is at fault: it begins where its first line does.
    rows.last_mut().unwrap().1 = 5;
    check_policies("RateLimitPolicy", &rows);
    // A number that is none never gets to be one.
    for number in [".nan", ".inf", "-.inf", "1e999"] {
        refusal(&format!(
            "{{apiVersion: policy.weft.dev/v1alpha1, kind: RateLimitPolicy, metadata: {{name: p}}, spec: {{limits: [{{name: a, window: 1s, requests: {number}}}]}}}}"
        ));
    }
}

#[test]
fn a_text_that_costs_more_than_its_size_is_refused() {
    let bomb = {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let last = level - 1;
            text += &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{last}"); 9].join(", "));
        }
        text
    };
    let deep_flow = "[".repeat(100_000);
    let deep_closed = format!("a: {}{}", "[".repeat(1_000), "]".repeat(1_000));
    let deep_block: String = (0..1_000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let big = format!("# {}\n", "x".repeat(10 << 20));
    let documents = "---\na\n".repeat(5_001);
    let many = format!("[{}]", "a,".repeat(200_000));
    let plainly = "plainly";
    let rows: &[(&str, &str, &str)] = &[
        ("duplicate", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\nkind: Service\n", "each field once"),
        ("duplicate in flow", "{apiVersion: v1, kind: Namespace, metadata: {name: a, name: b}}", "each field once"),
        ("alias bomb", &bomb, plainly),
        ("self alias", "a: &a [*a]\n", ""),
        ("unknown alias", "a: *b\n", ""),
        ("deep flow", &deep_flow, ""),
        ("deep flow, closed", &deep_closed, plainly),
        ("deep block", &deep_block, plainly),
        ("many values", &many, plainly),
        ("big", &big, &format!("at most {MAX_TEXT_BYTES} bytes")),
        ("documents", &documents, "at most 5000"),
        ("tab", "apiVersion: v1\n\tkind: a\n", "indentation"),
        ("unclosed", "apiVersion: 'v1\n", "quotation"),
    ];
    for (name, text, remedy) in rows {
        let error = refusal(text);
        assert!(error.remedy.contains(remedy), "{name}: {error}");
        assert!(error.to_string().len() < 700, "{name}: {error}");
    }
}

#[test]
fn aliases_of_a_modest_kind_are_read() {
    let text = "apiVersion: policy.weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  action: Allow\n  rules:\n  - from: &callers [{serviceAccounts: [a]}]\n    to: [{ports: [80]}]\n  - from: *callers\n    to: [{ports: [81]}]\n";
    match parse_documents(text).remove(0) {
        Ok(Resource::AuthorizationPolicy(policy)) => assert_eq!(policy.rules[0].from, policy.rules[1].from),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_broken_document_does_not_hide_the_good_ones_and_lines_count_from_the_file() {
    let good = |name: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
    let text = format!(
        "{}---\nkind: [unclosed\n---\n{}---\napiVersion: v1\nkind: Service\nmetadata: {{name: A}}\n---\n{}",
        good("a"),
        good("b"),
        good("c")
    );
    let resources = parse_documents(&text);
    let seen: Vec<String> = resources
        .iter()
        .map(|resource| match resource {
            Ok(resource) => resource.name().unwrap().name,
            Err(error) => format!("line {}", error.line),
        })
        .collect();
    // The parser notices at the end of its document that the bracket never closed.
    assert_eq!(seen[0], "a");
    assert!(["line 5", "line 6"].contains(&seen[1].as_str()), "{seen:?}");
    assert_eq!(seen[2..], ["b", "line 13", "c"]);
}

#[test]
fn every_prefix_of_a_good_file_is_read_without_a_panic() {
    let text = "---\napiVersion: policy.weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: \"shop\"}\nspec:\n  action: Allow # é\n  rules:\n  - from: [{identities: ['spiffe://a/ns/*']}]\n    to: &x\n    - {paths: [/a], ports: [80]}\n  - to: *x\n";
    for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
        assert!(!parse_documents(&text[..end]).is_empty());
    }
}
