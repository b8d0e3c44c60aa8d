//! `RateLimitPolicy`: how often a workload may be called.
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Value, json};

use super::error::quoted;
use super::metadata::Scope;
use super::name::MAX_LABEL_BYTES;
use super::node::{At, Fields, Shape};
use super::schema::{Fault, Schema};
use super::{LimitKey, Metadata, NamespacedName, RateLimit, ResourceError, Subject, Target, name};
use crate::duration;

/// Most requests that a limit may allow in its window.
pub const MAX_REQUESTS: u32 = 1_000_000;
/// Greatest burst.
pub const MAX_BURST: u32 = 1_000_000;
/// Longest window. The shortest is 1 ms.
pub const MAX_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// Bytes that a window may be written with: CEL must know how long what it looks at can be.
const MAX_WINDOW_BYTES: usize = 20;

const REQUESTS: RangeInclusive<u32> = 1..=MAX_REQUESTS;
const BURSTS: RangeInclusive<u32> = 1..=MAX_BURST;
const DEFAULT_KEY: (&str, LimitKey) = ("All", LimitKey::All);
const KEYS: &[(&str, LimitKey)] = &[("Client", LimitKey::Client), DEFAULT_KEY];
/// Who counts: each replica by itself.
const SCOPES: &[(&str, ())] = &[("Pod", ())];

const NOT_A_WINDOW: Fault = Fault {
    message: "is not a window",
    remedy: "Write a whole number with `ms`, `s`, `m`, `h` or `d`, from `1ms` to `24h`, such as `1s`.",
};
const CLIENT_ABOVE_ALL: Fault = Fault {
    message: "allows one client more than all together",
    remedy: "Lower the limit with `per: Client`, or raise the one with `per: All`.",
};

const SPEC: Shape = Shape { known: &["targetRefs", "selector", "limits"], later: &["mode"] };
const LIMIT: Shape = Shape { known: &["name", "requests", "window", "burst", "per", "scope"], later: &[] };

/// A RateLimitPolicy. Every limit of every policy that applies must have room for a request to pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitPolicy {
    /// Its name.
    pub name: NamespacedName,
    /// What it applies to.
    pub target: Target,
    /// Its limits: one or more, with different names. Each replica counts by itself (`scope: Pod`).
    pub limits: Vec<Limit>,
}

/// A limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Its name: a DNS label.
    pub name: String,
    /// Requests allowed in `window`: 1 to [`MAX_REQUESTS`].
    pub requests: u32,
    /// 1 ms to [`MAX_WINDOW`], in whole milliseconds.
    pub window: Duration,
    /// Requests allowed at once after idleness: 1 to [`MAX_BURST`]. Written without one it is `requests`, that is, the
    /// whole window's worth may come at once.
    pub burst: u32,
    /// Who shares the budget: `All` unless written.
    pub per: LimitKey,
}

impl RateLimitPolicy {
    /// Whether it applies to `subject`.
    pub fn applies_to(&self, subject: Subject<'_>) -> bool {
        self.target.applies_to(&self.name.namespace, subject)
    }

    /// Its limits, each with the policy's name.
    pub fn rate_limits(&self) -> impl Iterator<Item = RateLimit> + '_ {
        self.limits.iter().map(|limit| RateLimit {
            policy: self.name.clone(),
            name: limit.name.clone(),
            requests: limit.requests,
            window: limit.window,
            burst: limit.burst,
            per: limit.per,
        })
    }

    pub(crate) fn parse(document: &Fields<'_>) -> Result<Self, ResourceError> {
        let metadata = Metadata::parse(document, Scope::Own)?;
        let spec = document.require("spec", "Write `spec: {limits: […]}`.")?;
        Self::parse_spec(metadata.name, &spec)
    }

    /// Reads the `spec` of the policy `name`.
    pub(crate) fn parse_spec(name: NamespacedName, spec: &At<'_>) -> Result<Self, ResourceError> {
        let fields = spec.closed(&SPEC)?;
        let target = Target::parse(&fields)?;
        let mut limits: Vec<Limit> = Vec::new();
        for at in fields.require("limits", "List one limit or more.")?.items()? {
            let limit = limit(&at)?;
            if limits.iter().any(|other| other.name == limit.name) {
                return Err(
                    at.error(format_args!("repeats the name {}", quoted(&limit.name)), "Give each limit its own name.")
                );
            }
            limits.push(limit);
        }
        check_totals(spec, &limits)?;
        Ok(Self { name, target, limits })
    }

    /// The `spec` as JSON; reading it gives an equal policy.
    pub fn spec_json(&self) -> Value {
        let mut spec = serde_json::Map::new();
        self.target.write(&mut spec);
        spec.insert("limits".into(), self.limits.iter().map(Limit::to_json).collect());
        Value::Object(spec)
    }
}

impl Limit {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "requests": self.requests,
            "window": format!("{}ms", self.window.as_millis()),
            "burst": self.burst,
            "per": format!("{:?}", self.per),
        })
    }
    /// Requests a day, times milliseconds of a day: an exact rate to compare by.
    fn rate(&self) -> (u128, u128) {
        (u128::from(self.requests), self.window.as_millis())
    }
}

/// A client may not have more than all clients together: the limit for each would never be the one that limits.
fn check_totals(spec: &At<'_>, limits: &[Limit]) -> Result<(), ResourceError> {
    let of = |per| limits.iter().filter(move |limit| limit.per == per);
    for client in of(LimitKey::Client) {
        for all in of(LimitKey::All) {
            let ((client_requests, client_window), (all_requests, all_window)) = (client.rate(), all.rate());
            if client_requests * all_window > all_requests * client_window {
                return Err(spec.error(
                    format_args!(
                        "allows one client more ({}) than all together ({})",
                        quoted(&client.name),
                        quoted(&all.name)
                    ),
                    CLIENT_ABOVE_ALL.remedy,
                ));
            }
        }
    }
    Ok(())
}

fn limit(at: &At<'_>) -> Result<Limit, ResourceError> {
    let fields = at.closed(&LIMIT)?;
    let limit_name = name::label(&fields.require("name", "Give the limit a name; metrics and refusals show it.")?)?;
    let requests = fields.require("requests", "Write how many requests the window allows.")?.integer(REQUESTS)?;
    let window = window(&fields.require("window", "Write the window, such as `1s`.")?)?;
    let burst = match fields.get("burst") {
        Some(at) => at.integer(BURSTS)?,
        None => requests,
    };
    let per = match fields.get("per") {
        None => DEFAULT_KEY.1,
        Some(at) if at.open().is_ok() => {
            return Err(
                at.error("is a header or claim, which is not supported by this version", "Write `Client` or `All`.")
            );
        }
        Some(at) => at.one_of(KEYS)?,
    };
    match fields.get("scope") {
        None => {}
        Some(at) if at.text()? == "Service" => {
            return Err(at.error(
                "is `Service`, which is not supported by this version",
                "Write `Pod`, and the limit that each replica shall have.",
            ));
        }
        Some(at) => at.one_of(SCOPES)?,
    }
    Ok(Limit { name: limit_name.to_owned(), requests, window, burst, per })
}

fn window(at: &At<'_>) -> Result<Duration, ResourceError> {
    if at.is_integer() {
        return Err(at.error("has no unit", NOT_A_WINDOW.remedy));
    }
    let text = at.text()?;
    duration::parse(text)
        .ok()
        .filter(|window| text.len() <= MAX_WINDOW_BYTES && !window.is_zero() && *window <= MAX_WINDOW)
        .ok_or_else(|| {
            at.error(format_args!("is {}, which {}", quoted(text), NOT_A_WINDOW.message), NOT_A_WINDOW.remedy)
        })
}

impl RateLimitPolicy {
    /// The schema of the spec.
    pub(crate) fn schema() -> Schema {
        let [target_refs, selector] = Target::schemas();
        let limits = Schema::list("The limits. Each must have room for a request to pass.", 1, limit_schema());
        let spec = Schema::object(
            "How often workloads may be called.",
            &SPEC,
            &["limits"],
            [target_refs, selector, ("limits", limits.keyed_by("name"))],
        );
        Target::restrict(spec).rule(client_not_above_all(), "", &CLIENT_ABOVE_ALL)
    }
}

fn limit_schema() -> Schema {
    let window = Schema::text(
        "Time over which the requests are spread: a whole number with `ms`, `s`, `m`, `h` or `d`, from `1ms` to `24h`.",
        1..=MAX_WINDOW_BYTES,
    )
    .rule(
        // `&&` lets no error of its right side through where the left is false.
        format!("{} && {} <= {}.0", is_spelt_as_window("self"), millis("self"), MAX_WINDOW.as_millis()),
        "",
        &NOT_A_WINDOW,
    );
    Schema::object(
        "A limit.",
        &LIMIT,
        &["name", "requests", "window"],
        [
            ("name", Schema::text("Name that metrics and refusals show: a DNS label.", 1..=MAX_LABEL_BYTES)),
            ("requests", Schema::integer("Requests allowed in the window.", REQUESTS)),
            ("window", window),
            (
                "burst",
                Schema::integer("Requests allowed at once after idleness. Left out: as many as `requests`.", BURSTS),
            ),
            (
                "per",
                Schema::one_of(
                    "`Client`: each caller has its own budget, by SPIFFE ID, or by address without one. `All`: all \
                     callers share one.",
                    KEYS,
                )
                .default(DEFAULT_KEY.0),
            ),
            ("scope", Schema::one_of("`Pod`: each replica counts by itself.", SCOPES).default(SCOPES[0].0)),
        ],
    )
}

/// CEL: whether the text `window` is written as one.
fn is_spelt_as_window(window: &str) -> String {
    let units: Vec<&str> = duration::UNITS.iter().map(|(unit, _)| *unit).collect();
    format!("{window}.matches('^0*[1-9][0-9]*({})$')", units.join("|"))
}

/// CEL: the milliseconds of a window, as a floating-point number.
fn millis(window: &str) -> String {
    let units: Vec<String> = duration::UNITS.iter().map(|(unit, millis)| format!("'{unit}': {millis}.0")).collect();
    format!("double({window}.find('[0-9]+')) * {{{}}}[{window}.find('[a-z]+')]", units.join(", "))
}

/// CEL: what [`check_totals`] checks. Rates are compared as floating-point numbers, whose rounding never turns the order
/// of two rates about, so that nothing is refused here that is not refused there. Where a window is none, that is said
/// elsewhere.
fn client_not_above_all() -> String {
    let rates = |per: LimitKey| {
        let (word, _) = KEYS.iter().find(|(_, key)| *key == per).expect("every key has a word");
        let rate = format!("double(limit.requests) / ({})", millis("limit.window"));
        format!("self.limits.map(limit, limit.per == '{word}', {rate})")
    };
    // In requests a millisecond: no rate is lower than the one, none higher than the other.
    let (least, greatest) = ("[0.0]", format!("[{MAX_REQUESTS}.0]"));
    format!(
        "self.limits.exists(limit, !{}) || ({least} + {}).max() <= ({greatest} + {}).min()",
        is_spelt_as_window("limit.window"),
        rates(LimitKey::Client),
        rates(LimitKey::All)
    )
}
