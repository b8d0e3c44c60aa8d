//! Core `Namespace`: only its labels and annotations matter.
use std::collections::BTreeMap;

use super::error::{nearest, quoted};
use super::metadata::{Scope, annotation};
use super::node::{At, Fields};
use super::{DefaultPolicy, Metadata, ResourceError};

/// Annotation of a Namespace that says what happens to calls no policy speaks of.
pub const DEFAULT_POLICY_ANNOTATION: &str = "weft.dev/default-policy";

/// A Namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name: a DNS label.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// What `weft.dev/default-policy` says; `None`: the mesh's own default holds.
    pub default_policy: Option<DefaultPolicy>,
}

impl Namespace {
    pub(crate) fn parse(document: &Fields<'_>) -> Result<Self, ResourceError> {
        let metadata = Metadata::parse(document, Scope::Cluster)?;
        let default_policy =
            annotation(document, DEFAULT_POLICY_ANNOTATION).map(|at| default_policy(&at)).transpose()?;
        Ok(Self {
            name: metadata.name.name,
            labels: metadata.labels,
            annotations: metadata.annotations,
            default_policy,
        })
    }
}

fn default_policy(at: &At<'_>) -> Result<DefaultPolicy, ResourceError> {
    let text = at.text()?;
    DefaultPolicy::from_name(text).ok_or_else(|| {
        let remedy = match nearest(text, ["deny", "authenticated", "allow"]) {
            Some(right) => format!("Write `{right}`."),
            None => "Write `deny`, `authenticated` or `allow`.".to_owned(),
        };
        at.error(format_args!("is {}, which is no default policy", quoted(text)), remedy)
    })
}
