//! Names that the chart, the injector and the control plane have agreed on.
/// Recommended namespace of the control plane.
pub(super) const NAMESPACE: &str = "weft-system";
/// Deployment, Service, ServiceAccount, Lease, Role and ClusterRole of the control plane.
pub(super) const CONTROL_PLANE: &str = "weft-control-plane";
/// Labels of the control plane's pods.
pub(super) const CONTROL_PLANE_PODS: &str = "weft.dev/component=control-plane";
/// MutatingWebhookConfiguration, and ConfigMap of the injector's settings.
pub(super) const INJECTOR: &str = "weft-injector";
/// ValidatingWebhookConfiguration.
pub(super) const ADMISSION: &str = "weft-admission";
/// ValidatingAdmissionPolicy that refuses pods without sidecar where one is wanted.
pub(super) const INJECTED_POLICY: &str = "weft-injected";
/// Secret of the mesh's certificate authority.
pub(super) const CA_SECRET: &str = "weft-ca";
/// Secret of the webhooks' certificate.
pub(super) const WEBHOOK_SECRET: &str = "weft-webhook";
/// DaemonSet of the CNI plugin.
pub(super) const CNI: &str = "weft-cni";
/// ConfigMap of the mesh's roots, in each meshed namespace.
pub(super) const TRUST_BUNDLE: &str = "weft-trust-bundle";
/// Its key.
pub(super) const TRUST_BUNDLE_KEY: &str = "trust-bundle.pem";
/// The sidecar's container.
pub(super) const SIDECAR: &str = "weft-proxy";
/// Annotation or label that puts a namespace or a pod into the mesh, or takes it out.
pub(super) const INJECT: &str = "weft.dev/inject";
/// Annotation of an injected pod: by which version.
pub(super) const INJECTED: &str = "weft.dev/injected";
/// Annotation of a pod that was left alone: why.
pub(super) const INJECT_SKIPPED: &str = "weft.dev/inject-skipped";
/// Admin port of sidecars and control planes.
pub(super) const ADMIN_PORT: u16 = 4291;
/// Group of Weft's own kinds.
pub(super) const GROUP: &str = "policy.weft.dev";
/// Their version.
pub(super) const API_VERSION: &str = "v1alpha1";
/// This program's version.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
