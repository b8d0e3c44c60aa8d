//! What the operator of the shop declares, as the files that `weft control-plane --resources` reads.

/// Trust domain and namespace of the shop's identities.
pub(crate) const IDENTITY_PREFIX: &str = "spiffe://cluster.local/ns/shop/sa/";

/// The address of each Service.
pub(crate) const ADDRESSES: [(&str, [u8; 4]); 3] = [
    ("orders.shop.svc", [10, 96, 0, 10]),
    ("users.shop.svc", [10, 96, 0, 11]),
    ("inventory.shop.svc", [10, 96, 0, 12]),
];

/// Names of policies that the demo looks for in refusals.
pub(crate) const DELETE_POLICY: &str = "nobody-deletes-stock";
/// See [`DELETE_POLICY`].
pub(crate) const LIMIT_POLICY: &str = "orders-is-shared";

/// The namespace, where nothing is allowed that is not listed, its Services and its policies.
pub(crate) const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {weft.dev/default-policy: deny}}
---
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {clusterIP: 10.96.0.10, selector: {app: orders}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: users, namespace: shop}
spec: {clusterIP: 10.96.0.11, selector: {app: users}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: inventory, namespace: shop}
spec: {clusterIP: 10.96.0.12, selector: {app: inventory}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: orders-reads-users, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: users}]
  action: Allow
  rules:
  - from: [{serviceAccounts: [orders]}]
    to: [{methods: [GET], paths: [\"/users/*\"]}]
---
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: stock-readers, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: inventory}]
  action: Allow
  rules:
  - from: [{serviceAccounts: [orders, users]}]
    to: [{methods: [GET], paths: [\"/stock/*\"]}]
---
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: nobody-deletes-stock, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: inventory}]
  action: Deny
  rules:
  - to: [{methods: [DELETE]}]
---
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: health-readers, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  action: Allow
  rules:
  - from: [{serviceAccounts: [users, inventory]}]
    to: [{methods: [GET], paths: [\"/health\"]}]
---
apiVersion: policy.weft.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: orders-is-shared, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  limits:
  - {name: per-client, requests: 10, window: 1s, burst: 10, per: Client, scope: Pod}
";

/// The policy that is edited while the demo runs: who reads inventory's reports.
pub(crate) fn report_readers(service_account: &str) -> String {
    format!(
        "apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: report-readers, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: inventory}}]
  action: Allow
  rules:
  - from: [{{serviceAccounts: [{service_account}]}}]
    to: [{{methods: [GET], paths: [\"/reports/*\"]}}]
"
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_mesh_understands_every_document() {
        let reports = super::report_readers("auditors");
        for (text, wanted) in [(super::SHOP, 9), (reports.as_str(), 1)] {
            let read: Result<Vec<_>, _> = weft_api::resource::parse_documents(text).into_iter().collect();
            assert_eq!(read.expect("every document is valid").len(), wanted);
        }
    }
}
