//! What the control plane counts, in Prometheus' OpenMetrics text format. No label comes from a caller's input.
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// All metrics of one control plane. Cheap to clone; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Faults in the resources that are not mended: files with an error, and conflicts between files.
    pub config_errors: Gauge,
    /// Requests for a certificate, by how they ended.
    pub certificates: Family<SignLabels, Counter>,
    /// Configuration streams that are open.
    pub streams: Gauge,
    /// Configuration updates sent to sidecars.
    pub updates_sent: Counter,
    /// Updates that a sidecar could not apply; it kept what it had.
    pub updates_refused: Counter,
    /// Workloads whose sidecar said goodbye and has not come back: nobody is sent there.
    pub withdrawn: Gauge,
    /// When the first root of the trust bundle expires, seconds since 1970.
    pub trust_anchor_expiry: Gauge<f64, AtomicU64>,
    /// Resources in force.
    pub resources: Gauge,
    /// Lines that could not be written to the audit log.
    pub audit_failures: Counter,
    /// Policies that apply to no workload.
    pub idle_policies: Gauge,
    /// TLS handshakes that failed or took too long.
    pub handshake_failures: Counter,
    /// Identities that are refused everywhere.
    pub denied_identities: Gauge,
    /// What API servers asked the webhooks, by how it was answered.
    pub admission_reviews: Family<ReviewLabels, Counter>,
    /// When the webhooks' certificate expires, seconds since 1970; 0: there is none.
    pub webhook_certificate_expiry: Gauge<f64, AtomicU64>,
    /// Whether this replica leads: 1 or 0.
    pub leader: Gauge,
    /// Writes of the status of a policy or Workload, by how they ended.
    pub status_writes: Family<StatusLabels, Counter>,
}

/// What an API server asked, and how it was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReviewLabels {
    /// Which webhook was asked.
    pub webhook: Webhook,
    /// The answer.
    pub result: ReviewResult,
}

/// A webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)]
pub enum Webhook {
    /// Puts sidecars into pods.
    inject,
    /// Judges objects.
    validate,
}

impl Webhook {
    const ALL: [Self; 2] = [Self::inject, Self::validate];
}

/// How a review was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)]
pub enum ReviewResult {
    /// Allowed as it is.
    allowed,
    /// Allowed with a change.
    patched,
    /// Refused.
    refused,
    /// The request was no review.
    malformed,
    /// It could not be decided; the API server's failure policy does.
    error,
}

impl ReviewResult {
    const ALL: [Self; 5] = [Self::allowed, Self::patched, Self::refused, Self::malformed, Self::error];
}

/// How a write of a status ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StatusLabels {
    /// Its end.
    pub result: StatusResult,
}

/// How a write of a status ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)]
pub enum StatusResult {
    /// It was written.
    written,
    /// The object changed meanwhile; it is judged again.
    conflict,
    /// The object is gone.
    gone,
    /// The API server refused it or did not answer; it is tried again.
    error,
}

impl StatusResult {
    const ALL: [Self; 4] = [Self::written, Self::conflict, Self::gone, Self::error];
}

/// How a request for a certificate ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SignLabels {
    /// Its end.
    pub result: SignResult,
}

/// How a request for a certificate ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)]
pub enum SignResult {
    /// A certificate was issued.
    issued,
    /// The caller proved no identity.
    unauthenticated,
    /// The identity is denied.
    denied,
    /// The identity asked too often.
    limited,
    /// The request was no PKCS#10 request with an acceptable key.
    invalid,
    /// The authority failed.
    error,
}

impl SignResult {
    const ALL: [Self; 6] =
        [Self::issued, Self::unauthenticated, Self::denied, Self::limited, Self::invalid, Self::error];
}

impl Metrics {
    /// Counts one request for a certificate.
    pub fn signed(&self, result: SignResult) {
        self.certificates.get_or_create(&SignLabels { result }).inc();
    }

    /// Counts one question of an API server.
    pub fn reviewed(&self, webhook: Webhook, result: ReviewResult) {
        self.admission_reviews.get_or_create(&ReviewLabels { webhook, result }).inc();
    }

    /// Counts one write of a status.
    pub fn status_written(&self, result: StatusResult) {
        self.status_writes.get_or_create(&StatusLabels { result }).inc();
    }

    /// A registry with every metric that there is everywhere.
    pub fn registry(&self) -> Registry {
        // So that a rate can be taken from the first one on.
        for result in SignResult::ALL {
            drop(self.certificates.get_or_create(&SignLabels { result }));
        }
        let mut registry = Registry::with_prefix("weft");
        registry.register("config_errors", "Faults in the resources that are not mended", self.config_errors.clone());
        registry.register("resources", "Resources in force", self.resources.clone());
        registry.register(
            "audit_failures",
            "Lines that could not be written to the audit log",
            self.audit_failures.clone(),
        );
        registry.register("idle_policies", "Policies that apply to no workload", self.idle_policies.clone());
        registry.register(
            "tls_handshake_failures",
            "TLS handshakes that failed or took too long",
            self.handshake_failures.clone(),
        );
        registry.register("denied_identities", "Identities refused everywhere", self.denied_identities.clone());
        registry.register(
            "certificates_issued",
            "Requests for a certificate, by how they ended",
            self.certificates.clone(),
        );
        registry.register("streams", "Configuration streams that are open", self.streams.clone());
        registry.register("updates_sent", "Configuration updates sent to sidecars", self.updates_sent.clone());
        registry.register("updates_refused", "Updates that a sidecar could not apply", self.updates_refused.clone());
        registry.register("withdrawn_workloads", "Workloads whose sidecar is draining", self.withdrawn.clone());
        registry.register(
            "trust_anchor_expiry_timestamp_seconds",
            "When the first root of the trust bundle expires",
            self.trust_anchor_expiry.clone(),
        );
        registry
    }

    /// Adds what there is on Kubernetes only: elsewhere a leader that is missing would be a false alarm.
    pub fn register_for_cluster(&self, registry: &mut Registry) {
        for (webhook, result) in
            Webhook::ALL.into_iter().flat_map(|webhook| ReviewResult::ALL.map(|one| (webhook, one)))
        {
            drop(self.admission_reviews.get_or_create(&ReviewLabels { webhook, result }));
        }
        for result in StatusResult::ALL {
            drop(self.status_writes.get_or_create(&StatusLabels { result }));
        }
        registry.register("leader", "Whether this replica leads", self.leader.clone());
        registry.register(
            "status_writes",
            "Writes of the status of a policy or Workload, by how they ended",
            self.status_writes.clone(),
        );
        registry.register(
            "admission_reviews",
            "Questions of API servers to the webhooks, by how they were answered",
            self.admission_reviews.clone(),
        );
        registry.register(
            "webhook_certificate_expiry_timestamp_seconds",
            "When the webhooks' certificate expires; 0: there is none",
            self.webhook_certificate_expiry.clone(),
        );
    }
}

/// The metrics of `registry` as OpenMetrics text.
pub fn encode(registry: &Registry) -> String {
    let mut body = String::new();
    text::encode(&mut body, registry).expect("a String takes all text");
    body
}
