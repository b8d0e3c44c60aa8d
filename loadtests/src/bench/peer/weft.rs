//! Two sidecars of Weft with their control plane: redirect rules, mTLS, authorization by a few rules, a rate limit,
//! metrics.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{HTTP1, Network, Pair};
use crate::mesh::{ADMIN_PORT, Mesh, MeshOptions, WorkloadSpec, eventually, get};

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

const RESOURCES: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {weft.dev/default-policy: deny}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: server}
  ports:
  - {name: http, port: 8080, targetPort: 8080}
  - {name: http2, port: 8081, targetPort: 8081, appProtocol: kubernetes.io/h2c}
  - {name: opaque, port: 9000, targetPort: 9000, appProtocol: tcp}
---
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: server}]
  action: Allow
  rules:
  - from: [{serviceAccounts: [reporting]}]
    to: [{methods: [GET], paths: [\"/reports/*\"]}]
  - from: [{serviceAccounts: [client]}]
    to:
    - {methods: [GET], paths: [\"/items/{id}\", \"/\"]}
    - {ports: [9000]}
  - from: [{serviceAccounts: [admin]}]
---
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: nobody-deletes, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: server}]
  action: Deny
  rules:
  - to: [{methods: [DELETE], ports: [8080, 8081]}]
---
apiVersion: policy.weft.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: enough-for-all, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: server}]
  limits:
  - {name: per-client, requests: 1000000, window: 1s, burst: 1000000, per: Client, scope: Pod}
";

pub(super) fn start(weft: &Path, proxy_arguments: &[String]) -> Result<Pair> {
    let mut options = MeshOptions::new(weft);
    // The idle connections are more than a quarter of the descriptors that a process may have here and there.
    options.proxy_arguments = vec!["--max-connections".into(), "9000".into()];
    options.proxy_arguments.extend_from_slice(proxy_arguments);
    // What the images of sidecars hold, where it was built too.
    let alone = weft.with_file_name("weft-proxy");
    options.weft_proxy = alone.is_file().then(|| alone.into());
    let mesh = Mesh::start("weft", options)?;
    mesh.write("bench.yaml", RESOURCES)?;
    // One family, as the other peers use.
    let spec = |name, app, address: [u8; 4]| WorkloadSpec::new(name, app).address(Ipv4Addr::from(address));
    let mut server = mesh.pod(spec("server-1", "server", [10, 77, 1, 2]))?;
    let mut client = mesh.pod(spec("client-1", "client", [10, 77, 1, 1]))?;
    let view = |pod| get(pod, (Ipv4Addr::LOCALHOST, ADMIN_PORT).into(), "/config");
    eventually("the sidecars know the Service and its policies", Duration::from_secs(10), || {
        let (_, of_server) = view(&server.pod)?;
        let (_, of_client) = view(&client.pod)?;
        let endpoint = format!("{}", server.pod.address(HTTP1));
        Ok(of_server.contains("enough-for-all") && of_client.contains(&endpoint))
    })?;
    let sidecars = vec![client.sidecar.take().context("started")?, server.sidecar.take().context("started")?];
    Pair::new(client.pod, &server.pod, IpAddr::V4(SERVICE), 0, sidecars, Network::Mesh(Box::new(mesh)))
}
