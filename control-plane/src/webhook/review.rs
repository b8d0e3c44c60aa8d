//! AdmissionReview, `admission.k8s.io/v1`: reads what an API server asks, and writes the answer. Does no I/O.
//!
//! Whoever reaches the port may send anything, so nothing is taken for granted: a review that is not whole is an error
//! with what was expected, and what is shown to people is cut short and has no control characters.
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

/// Values that a review may hold, counted by the signs before them. A Pod or policy of the largest size that an API
/// server stores has fewer, and no more memory is ever spent on a body.
const MAX_VALUES: usize = 600_000;
/// API servers cut warnings off beyond this.
const MAX_WARNING_CHARS: usize = 256;
/// API servers show 4,096 bytes of warnings in all.
const MAX_WARNINGS: usize = 10;
/// More than any message of ours has.
const MAX_MESSAGE_CHARS: usize = 1_024;

/// What an API server asks.
#[derive(Debug)]
pub struct Review {
    /// Names this one question.
    pub uid: String,
    /// Kind of the object.
    pub kind: Kind,
    /// What is being done to it.
    pub operation: Operation,
    /// Namespace of the object; empty for a cluster-wide kind.
    pub namespace: String,
    /// Name of the object; empty where the API server has yet to generate one.
    pub name: String,
    /// `status`, `scale` or the like; empty: the object itself.
    pub sub_resource: String,
    /// Who does it.
    pub user: String,
    /// The object as it would be stored; null when it is deleted.
    pub object: Value,
    /// The object as it is stored; null when it is created.
    pub old_object: Value,
}

/// What is being done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// It is created.
    Create,
    /// It is changed.
    Update,
    /// It is deleted.
    Delete,
    /// A connection to it is opened, such as `kubectl exec`.
    Connect,
}

/// Group, version and kind of an object.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Kind {
    /// Empty: core.
    #[serde(default)]
    pub group: String,
    /// Version of the group.
    #[serde(default)]
    pub version: String,
    /// Kind.
    pub kind: String,
}

/// The body is no review that can be answered. Says what is wrong and what was expected.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

/// How a review is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing speaks against it.
    Allow {
        /// Shown to who asked, such as by kubectl.
        warnings: Vec<String>,
    },
    /// The object is to be changed by this JSON patch (RFC 6902).
    Patch {
        /// The operations, an array.
        patch: Value,
        /// Shown to who asked.
        warnings: Vec<String>,
    },
    /// It must not be.
    Refuse {
        /// What is wrong, and what to write instead.
        message: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Request>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    #[serde(default)]
    uid: String,
    kind: Kind,
    operation: Operation,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    sub_resource: String,
    #[serde(default)]
    user_info: User,
    #[serde(default)]
    object: Value,
    #[serde(default)]
    old_object: Value,
}

#[derive(Default, Deserialize)]
struct User {
    #[serde(default)]
    username: String,
}

impl Review {
    /// Reads a review.
    ///
    /// # Errors
    /// It is not JSON, not an AdmissionReview of `admission.k8s.io/v1`, or lacks what its operation demands.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let malformed = |what: String| Malformed(shown(&what, MAX_MESSAGE_CHARS));
        if body.is_empty() {
            return Err(malformed("the body is empty; send an AdmissionReview as JSON".into()));
        }
        if body.iter().filter(|byte| matches!(byte, b',' | b':' | b'[' | b'{')).nth(MAX_VALUES).is_some() {
            return Err(malformed(format!("the body holds more than {MAX_VALUES} values")));
        }
        let body: Body = serde_json::from_slice(body)
            .map_err(|fault| malformed(format!("the body is not an AdmissionReview as JSON: {fault}")))?;
        if body.kind != "AdmissionReview" || body.api_version != "admission.k8s.io/v1" {
            return Err(malformed(format!(
                "the body is '{}' of '{}'; only AdmissionReview of admission.k8s.io/v1 is answered: write `v1` in the \
                 webhook's admissionReviewVersions",
                body.kind, body.api_version
            )));
        }
        let Some(request) = body.request else { return Err(malformed("the review has no request".into())) };
        if request.uid.is_empty() {
            return Err(malformed("the request has no uid".into()));
        }
        let needed = match request.operation {
            Operation::Create => [Some(("object", &request.object)), None],
            Operation::Update => [Some(("object", &request.object)), Some(("oldObject", &request.old_object))],
            Operation::Delete | Operation::Connect => [None, None],
        };
        if let Some((name, _)) = needed.into_iter().flatten().find(|(_, value)| !value.is_object()) {
            return Err(malformed(format!("the request's {name} is not an object")));
        }
        Ok(Self {
            uid: request.uid,
            kind: request.kind,
            operation: request.operation,
            namespace: request.namespace,
            name: request.name,
            sub_resource: request.sub_resource,
            user: request.user_info.username,
            object: request.object,
            old_object: request.old_object,
        })
    }

    /// What the object is called: its name, or what it is generated from.
    pub fn object_name(&self) -> &str {
        let written = |field| self.object.pointer(field).and_then(Value::as_str).filter(|name| !name.is_empty());
        match self.name.as_str() {
            "" => written("/metadata/name").or_else(|| written("/metadata/generateName")).unwrap_or_default(),
            name => name,
        }
    }
}

impl Answer {
    /// Allows without a word.
    pub fn allow() -> Self {
        Self::Allow { warnings: Vec::new() }
    }

    /// The AdmissionReview that answers the review called `uid`.
    pub fn to_json(&self, uid: &str) -> Value {
        let mut response = json!({"uid": uid, "allowed": !matches!(self, Self::Refuse { .. })});
        if let Self::Allow { warnings } | Self::Patch { warnings, .. } = self
            && !warnings.is_empty()
        {
            let warnings = warnings.iter().take(MAX_WARNINGS);
            response["warnings"] = warnings.map(|warning| shown(warning, MAX_WARNING_CHARS)).collect();
        }
        match self {
            Self::Allow { .. } => {}
            Self::Patch { patch, .. } => {
                response["patchType"] = "JSONPatch".into();
                response["patch"] = BASE64_STANDARD.encode(patch.to_string()).into();
            }
            Self::Refuse { message } => {
                response["status"] = json!({
                    "status": "Failure",
                    "reason": "Invalid",
                    "code": 422,
                    "message": shown(message, MAX_MESSAGE_CHARS),
                });
            }
        }
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }
}

/// At most `limit` characters of `text`, without control characters: API servers put warnings into a header.
fn shown(text: &str, limit: usize) -> String {
    let clean = |text: &str| text.chars().map(|sign| if sign.is_control() { ' ' } else { sign }).collect::<String>();
    match text.char_indices().nth(limit) {
        None => clean(text),
        Some(_) => {
            let end = text.char_indices().nth(limit - 1).map_or(0, |(end, _)| end);
            clean(&text[..end]) + "…"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "u-1",
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "operation": "CREATE",
                "namespace": "shop",
                "userInfo": {"username": "alice", "groups": ["dev"]},
                "object": {"metadata": {"generateName": "orders-"}},
                "oldObject": null,
                "dryRun": true,
                "options": null
            }
        });
        change(&mut review);
        review.to_string().into_bytes()
    }

    #[test]
    fn a_review_is_read() {
        let review = Review::parse(&review(|_| {})).expect("whole");
        assert_eq!((review.uid.as_str(), review.namespace.as_str(), review.user.as_str()), ("u-1", "shop", "alice"));
        assert_eq!((review.kind.kind.as_str(), review.operation), ("Pod", Operation::Create));
        assert_eq!(review.object_name(), "orders-");
    }

    #[test]
    fn a_review_that_is_not_whole_is_refused_with_what_was_expected() {
        let nested = |open: &str, close: &str| {
            let text = String::from_utf8(review(|_| {})).expect("text");
            let deep = format!("{}1{}", open.repeat(10_000), close.repeat(10_000));
            text.replace("\"oldObject\":null", &format!("\"oldObject\":{deep}")).into_bytes()
        };
        let rows: Vec<(&str, Vec<u8>, &str)> = vec![
            ("empty body", Vec::new(), "the body is empty"),
            ("no JSON", b"<html>".to_vec(), "not an AdmissionReview as JSON"),
            ("not UTF-8", b"{\"kind\":\"\xff\"}".to_vec(), "not an AdmissionReview as JSON"),
            ("null", b"null".to_vec(), "not an AdmissionReview as JSON"),
            ("a list", b"[]".to_vec(), "not an AdmissionReview as JSON"),
            ("cut off", review(|_| {})[..80].to_vec(), "not an AdmissionReview as JSON"),
            ("nothing in it", b"{}".to_vec(), "only AdmissionReview of admission.k8s.io/v1"),
            ("v1beta1", review(|all| all["apiVersion"] = "admission.k8s.io/v1beta1".into()), "write `v1`"),
            ("wrong kind", review(|all| all["kind"] = "Pod".into()), "'Pod'"),
            ("no request", review(|all| all["request"] = Value::Null), "no request"),
            ("request is text", review(|all| all["request"] = "x".into()), "not an AdmissionReview as JSON"),
            ("no uid", review(|all| all["request"]["uid"] = "".into()), "no uid"),
            ("uid is null", review(|all| all["request"]["uid"] = Value::Null), "not an AdmissionReview"),
            ("no kind", review(|all| all["request"]["kind"] = Value::Null), "not an AdmissionReview"),
            ("object null", review(|all| all["request"]["object"] = Value::Null), "object is not an object"),
            ("object is a list", review(|all| all["request"]["object"] = json!([])), "object is not an object"),
            (
                "update without old",
                review(|all| all["request"]["operation"] = "UPDATE".into()),
                "oldObject is not an object",
            ),
            ("unknown operation", review(|all| all["request"]["operation"] = "PATCH".into()), "unknown variant"),
            ("nested lists", nested("[", "]"), "recursion limit"),
            ("nested objects", nested("{\"a\":", "}"), "recursion limit"),
            ("many values", [&b"["[..], &b"[],".repeat(MAX_VALUES)].concat(), "more than"),
        ];
        for (name, body, expected) in rows {
            let fault = Review::parse(&body).expect_err(name).to_string();
            assert!(fault.contains(expected), "{name}: {fault}");
            assert!(fault.chars().count() <= MAX_MESSAGE_CHARS, "{name}: {} characters", fault.len());
        }
    }

    #[test]
    fn answers_are_what_an_api_server_reads() {
        let allowed = Answer::Allow { warnings: vec!["a\nb".into(), "ü".repeat(300)] }.to_json("u-1");
        assert_eq!(allowed["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(allowed["response"]["allowed"], true);
        assert_eq!(allowed["response"]["warnings"][0], "a b");
        let long = allowed["response"]["warnings"][1].as_str().expect("text");
        assert_eq!(long.chars().count(), MAX_WARNING_CHARS);
        assert!(long.ends_with('…'));

        let patch = json!([{"op": "add", "path": "/spec/x", "value": 1}]);
        let patched = Answer::Patch { patch: patch.clone(), warnings: Vec::new() }.to_json("u-1");
        assert_eq!(patched["response"]["patchType"], "JSONPatch");
        let sent = BASE64_STANDARD.decode(patched["response"]["patch"].as_str().expect("text")).expect("base64");
        assert_eq!(serde_json::from_slice::<Value>(&sent).expect("JSON"), patch);
        assert!(patched["response"].get("warnings").is_none());

        let refused = Answer::Refuse { message: "no".into() }.to_json("u-1");
        assert_eq!((&refused["response"]["allowed"], &refused["response"]["uid"]), (&json!(false), &json!("u-1")));
        assert_eq!(refused["response"]["status"]["message"], "no");
    }
}
