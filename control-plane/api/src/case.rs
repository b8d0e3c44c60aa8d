//! Calls with the decisions that are expected of them: what `weft policy test` reads.
//!
//! A text holds YAML documents, each one case or a list of cases. Faults are those of resources: the place, what is wrong,
//! what to write instead. Nothing is judged here.
use std::collections::BTreeMap;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value as Json};
use weft_certs::SpiffeId;

use crate::policy::Claims;
use crate::resource::node::{At, Fields, Node, Shape, Value};
use crate::resource::{MAX_TEXT_BYTES, NamespacedName, ResourceError, is_dns_label, is_dns_subdomain};
use crate::resource::{documents, parse_text};

const CASE: Shape = Shape { known: &["name", "call", "expect", "by"], later: &[] };
const CALL: Shape = Shape { known: &["from", "to", "port", "method", "path", "host", "headers", "claims"], later: &[] };
const DESTINATION: Shape = Shape { known: &["namespace", "labels", "serviceAccount"], later: &[] };
const HTTP_FIELDS: [&str; 5] = ["method", "path", "host", "headers", "claims"];
const EXPECTED: &[(&str, Expected)] =
    &[("allowed", Expected::Allowed), ("refused", Expected::Refused), ("malformed", Expected::Malformed)];
const FROM: &str = "Write a service account such as `shop/orders`, a SPIFFE ID, an IP address, or `outside`.";

/// A call, and what is to become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Line where it begins, from 1.
    pub line: usize,
    /// What it is called.
    pub name: Option<String>,
    /// The call.
    pub call: Call,
    /// What is to become of it.
    pub expect: Expected,
    /// Who is to decide it: `namespace/name`, a name of the namespace that is called, `default`, `denied-identities`.
    pub by: Option<String>,
}

/// What is to become of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It passes.
    Allowed,
    /// Policy refuses it.
    Refused,
    /// It has no single reading and is refused before policy is asked (400).
    Malformed,
}

impl Expected {
    /// The word that is written for it.
    pub fn as_str(self) -> &'static str {
        EXPECTED.iter().find(|(_, meaning)| *meaning == self).map_or("", |(word, _)| word)
    }
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Who calls.
    pub from: Caller,
    /// Who is called.
    pub to: Callee,
    /// Port of the workload; `None`: the one that the Service leads to.
    pub port: Option<u16>,
    /// The request; `None`: a byte stream.
    pub request: Option<Request>,
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A service account of the mesh.
    Account(NamespacedName),
    /// A mesh identity.
    Identity(SpiffeId),
    /// Somebody without one, at this address.
    Outside(IpAddr),
}

/// Who is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Callee {
    /// The workloads behind the Service of that name, else the Workload of that name.
    Named(NamespacedName),
    /// A workload that no document declares.
    Described {
        /// Its namespace.
        namespace: String,
        /// Its labels.
        labels: BTreeMap<String, String>,
        /// Its service account.
        service_account: String,
    },
}

impl Callee {
    /// The namespace that is called.
    pub fn namespace(&self) -> &str {
        match self {
            Self::Named(name) => &name.namespace,
            Self::Described { namespace, .. } => namespace,
        }
    }
}

/// An HTTP request, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its method.
    pub method: String,
    /// Its path, not normalized.
    pub path: String,
    /// Its host; `None`: the name of the Service that is called.
    pub host: Option<String>,
    /// Its header fields.
    pub headers: HeaderMap,
    /// The claims of its verified token; `None`: it has none.
    pub claims: Option<Claims>,
}

/// Who calls, as it is written: `namespace/account` (or `account` of `namespace`), a SPIFFE ID, an address, `outside`.
///
/// # Errors
/// What to write instead.
pub fn parse_caller(text: &str, namespace: &str) -> Result<Caller, &'static str> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Caller::Outside(address.to_canonical()));
    }
    if text == "outside" {
        return Ok(Caller::Outside(IpAddr::from([0, 0, 0, 0])));
    }
    if text.starts_with("spiffe://") {
        return SpiffeId::parse(text).map(Caller::Identity).map_err(|_| FROM);
    }
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    match is_dns_label(namespace) && is_dns_subdomain(name) {
        true => Ok(Caller::Account(NamespacedName::new(namespace, name))),
        false => Err(FROM),
    }
}

/// Reads all cases of `text`, each with the number of its document, from 1. A text without any is a fault.
pub fn parse_cases(text: &str) -> Vec<(usize, Result<Case, ResourceError>)> {
    if text.len() > MAX_TEXT_BYTES {
        let message = format!("the text has {} bytes", text.len());
        let remedy = format!("Write at most {MAX_TEXT_BYTES} bytes; split it into several files.");
        return vec![(1, Err(ResourceError::new(0, message, remedy)))];
    }
    let mut cases = Vec::new();
    for (document, (text, lines_before)) in documents(text).into_iter().enumerate() {
        let mut add = |case| cases.push((document + 1, case));
        match parse_text(text, lines_before) {
            Err(error) => add(Err(error)),
            Ok(node) if matches!(node.value, Value::List(_)) => match At::new("", &node).open_items() {
                Ok(items) => items.iter().for_each(|at| add(case(at))),
                Err(error) => add(Err(error)),
            },
            Ok(node) => add(case(&At::new("", &node))),
        }
    }
    if cases.is_empty() {
        let remedy = "Write `call: {from: …, to: …}` and `expect: allowed`.";
        cases.push((1, Err(ResourceError::new(1, "the text holds no case", remedy))));
    }
    cases
}

fn case(at: &At<'_>) -> Result<Case, ResourceError> {
    let fields = at.closed(&CASE)?;
    let call = fields.require("call", "Write `call: {from: shop/orders, to: shop/inventory}`.")?;
    let expect = fields.require("expect", "Write `expect: allowed`, `refused` or `malformed`.")?;
    let text = |key| fields.get(key).map(|at| at.text().map(str::to_owned)).transpose();
    Ok(Case {
        line: at.line(),
        name: text("name")?,
        call: self::call(&call)?,
        expect: expect.one_of(EXPECTED)?,
        by: text("by")?,
    })
}

fn call(at: &At<'_>) -> Result<Call, ResourceError> {
    let fields = at.closed(&CALL)?;
    let to = callee(&fields.require("to", "Write the Service or Workload, such as `shop/inventory`.")?)?;
    let from_at = fields.require("from", FROM)?;
    let from = from_at.text()?;
    let from = parse_caller(from, to.namespace())
        .map_err(|remedy| from_at.error(format_args!("is `{}`", from.escape_debug()), remedy))?;
    let is_http = HTTP_FIELDS.iter().any(|field| fields.get(field).is_some());
    Ok(Call {
        from,
        to,
        port: fields.get("port").map(|at| at.port()).transpose()?,
        request: if is_http { Some(request(&fields)?) } else { None },
    })
}

fn callee(at: &At<'_>) -> Result<Callee, ResourceError> {
    if !at.is_text() {
        let fields = at.closed(&DESTINATION)?;
        let text = |key, remedy: &str| fields.require(key, remedy)?.text().map(str::to_owned);
        let service_account = match fields.get("serviceAccount") {
            Some(at) => at.text()?.to_owned(),
            None => "default".to_owned(),
        };
        let labels = fields.require("labels", "Write the pod's labels.")?.text_map()?;
        return Ok(Callee::Described {
            namespace: text("namespace", "Write the pod's namespace.")?,
            labels,
            service_account,
        });
    }
    let text = at.text()?;
    match text.split_once('/') {
        Some((namespace, name)) if is_dns_label(namespace) && is_dns_subdomain(name) => {
            Ok(Callee::Named(NamespacedName::new(namespace, name)))
        }
        _ => Err(at.error(
            format_args!("is `{}`, which is no namespace and name", text.escape_debug()),
            "Write `namespace/name` of a Service or Workload, or `{namespace: …, labels: {…}}`.",
        )),
    }
}

fn request(fields: &Fields<'_>) -> Result<Request, ResourceError> {
    let text = |key: &str| fields.get(key).map(|at| at.text().map(str::to_owned)).transpose();
    let mut headers = HeaderMap::new();
    if let Some(at) = fields.get("headers") {
        for (name, value) in at.text_map()? {
            let parsed = HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_str(&value).ok());
            let (name, value) = parsed.ok_or_else(|| {
                let message = format_args!("holds `{}`, which is no header field", name.escape_debug()).to_string();
                at.error(message, "Write names such as `x-tenant` with values of visible ASCII.")
            })?;
            headers.append(name, value);
        }
    }
    let claims = match fields.get("claims") {
        None => None,
        Some(at) => match at.open().map(|_| json(at.node())) {
            Ok(Json::Object(claims)) => Some(Claims::new(claims)),
            Ok(_) => None,
            Err(error) => return Err(error),
        },
    };
    Ok(Request {
        method: text("method")?.unwrap_or_else(|| "GET".to_owned()),
        path: text("path")?.unwrap_or_else(|| "/".to_owned()),
        host: text("host")?,
        headers,
        claims,
    })
}

fn json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Boolean(value) => (*value).into(),
        Value::Integer(value) => i64::try_from(*value).map_or_else(|_| value.to_string().into(), Json::from),
        Value::Float(value) => (*value).into(),
        Value::Text(text) => text.as_str().into(),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Object(entries) => {
            Json::Object(entries.iter().map(|entry| (entry.key.clone(), json(&entry.node))).collect::<Map<_, _>>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(text: &str) -> Result<Case, ResourceError> {
        let mut cases = parse_cases(text);
        assert_eq!(cases.len(), 1, "{cases:?}");
        cases.remove(0).1
    }

    #[test]
    fn a_case_is_read_whole() {
        let case = only(
            "name: n\ncall: {from: orders, to: shop/inventory, port: 8080, method: GET, path: /a%2f, host: h, \
             headers: {x-a: b}, claims: {sub: c, n: 1}}\nexpect: refused\nby: shop/p\n",
        );
        let case = case.expect("valid");
        assert_eq!(case.call.from, Caller::Account(NamespacedName::new("shop", "orders")));
        assert_eq!(case.call.to, Callee::Named(NamespacedName::new("shop", "inventory")));
        assert_eq!((case.expect, case.by.as_deref(), case.call.port), (Expected::Refused, Some("shop/p"), Some(8080)));
        let request = case.call.request.expect("HTTP");
        assert_eq!((request.path.as_str(), request.headers["x-a"].as_bytes()), ("/a%2f", &b"b"[..]));
        assert_eq!(request.claims.expect("claims").values("n").collect::<Vec<_>>(), ["1"]);
        let stream = only("{call: {from: 10.0.0.1, to: {namespace: shop, labels: {app: a}}}, expect: allowed}");
        let stream = stream.expect("valid");
        assert_eq!(stream.call.request, None, "without a field of HTTP it is a byte stream");
        assert_eq!(stream.call.from, Caller::Outside(IpAddr::from([10, 0, 0, 1])));
    }

    #[test]
    fn a_fault_names_document_line_field_and_remedy() {
        let good = "call: {from: outside, to: shop/a}\nexpect: allowed\n";
        for (bad, line, said) in [
            ("call: {form: a, to: shop/b}\nexpect: allowed\n", 4, "`form` in `call` is not a field. Write `from`."),
            (
                "call: {from: a, to: b}\nexpect: allowed\n",
                4,
                "`call.to` is `b`, which is no namespace and name. Write `namespace/name`",
            ),
            ("call: {from: A/b, to: shop/b}\nexpect: allowed\n", 4, "`call.from` is `A/b`. Write a service account"),
            ("call: {from: a, to: shop/b}\nexpect: denied\n", 5, "`expect` is `denied`. Write `allowed` or `refused`"),
            ("call: {from: a, to: shop/b}\n", 4, "`expect` is missing"),
            ("call: {from: a, to: shop/b, port: 0}\nexpect: allowed\n", 4, "`call.port` is 0, which is out of range"),
            ("call: {from: a, to: shop/b, headers: {'a b': c}}\nexpect: allowed\n", 4, "`call.headers` holds `a b`"),
        ] {
            let cases = parse_cases(&format!("{good}---\n{bad}"));
            let (document, error) = (cases[1].0, cases[1].1.clone().expect_err(bad));
            assert_eq!((document, error.line), (2, line), "{error}");
            assert!(error.to_string().contains(said), "{error}");
            assert!(cases[0].1.is_ok(), "a fault hides no case beside it");
        }
        assert!(only("# nothing\n").expect_err("no case").to_string().contains("holds no case"));
    }

    #[test]
    fn a_document_may_be_a_list() {
        let cases =
            parse_cases("- {call: {from: a, to: shop/b}, expect: allowed}\n- {call: {from: a}, expect: allowed}\n");
        assert_eq!(cases.iter().map(|(_, case)| case.is_ok()).collect::<Vec<_>>(), [true, false]);
    }
}
