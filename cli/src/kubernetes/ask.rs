//! What other commands ask of the admin ports of a cluster's pods.
use super::client::ClusterArgs;
use super::control_plane::replicas;
use super::forward;
use super::get::policies::pod_of;

/// What the sidecar of `target` (`pod/NAME`, `deploy/NAME`, `sts/NAME`, `ds/NAME`, or a pod's name) answers to each of
/// `paths`.
///
/// # Errors
/// What to tell an operator.
pub(crate) async fn sidecar(
    cluster: &ClusterArgs,
    namespace: Option<&str>,
    target: &str,
    paths: &[String],
) -> anyhow::Result<Vec<Result<String, String>>> {
    let cluster = cluster.connect().await?;
    let namespace = namespace.unwrap_or(&cluster.default_namespace).to_owned();
    let (kind, name) = target.split_once('/').unwrap_or(("pod", target));
    let pod = pod_of(&cluster, &namespace, kind, name).await?;
    anyhow::ensure!(
        pod.sidecar.is_some(),
        "pod {} has no sidecar: it is not in the mesh, and no policy protects it; see weft check",
        pod.key()
    );
    let mut answers = Vec::new();
    for path in paths {
        answers.push(forward::get(&cluster, &namespace, &pod.name, path).await);
    }
    Ok(answers)
}

/// What the control plane answers to `path`: the first replica that does.
///
/// # Errors
/// What to tell an operator.
pub(crate) async fn control_plane(cluster: &ClusterArgs, path: &str) -> anyhow::Result<String> {
    let cluster = cluster.connect().await?;
    let pods = replicas(&cluster).await.map_err(|fault| cluster.failed(fault))?;
    let mut last = "there is no control plane in this cluster; see weft check".to_owned();
    for pod in &pods {
        match forward::get(&cluster, &pod.namespace, &pod.name, path).await {
            Ok(answer) => return Ok(answer),
            Err(fault) => last = format!("pod {}: {fault}", pod.key()),
        }
    }
    Err(anyhow::anyhow!(last))
}
