//! The way to a cluster: kubectl's flags, kubectl's files, and errors that say what to do.
use std::error::Error;
use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kube::api::{Api, ListParams};
use kube::client::UpgradeConnectionError;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use weft_api::duration;

/// Objects asked for at a time, so that a large cluster's API server is not made to answer with everything at once.
const PAGE: u32 = 500;

/// What is said where nothing answers.
const NO_ANSWER: &str = "the API server does not answer";
/// What is said to somebody whom the API server does not know.
pub(super) const UNKNOWN_USER: &str = "the API server does not know this user (401): the kubeconfig's credentials are wrong \
                                       or have expired; log in again, or give --user";
/// What is said of a kind that the API server does not have.
pub(super) const NO_SUCH_KIND: &str = "the API server does not have this kind";

/// Which cluster, and as whom: as kubectl has it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Kubeconfig file, instead of the files of $KUBECONFIG or ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig, instead of its current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Cluster of the kubeconfig, instead of the context's.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// User of the kubeconfig, instead of the context's.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Act as this user.
    #[arg(long = "as", value_name = "NAME")]
    impersonate: Option<String>,
    /// Act as a member of this group; may be repeated.
    #[arg(long = "as-group", value_name = "NAME", requires = "impersonate")]
    impersonate_groups: Vec<String>,
    /// How long one answer may take (`0`: no limit).
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = timeout)]
    request_timeout: Timeout,
}

/// `None`: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timeout(Option<Duration>);

/// Like kubectl, a number alone is in seconds and 0 is no limit.
fn timeout(text: &str) -> Result<Timeout, String> {
    let duration = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => duration::parse(text)?,
    };
    Ok(Timeout((!duration.is_zero()).then_some(duration)))
}

/// A cluster that can be asked.
#[derive(Clone)]
pub(super) struct Cluster {
    /// Asks.
    pub(super) client: Client,
    /// Address of the API server.
    pub(super) server: String,
    /// Namespace of the context.
    pub(super) default_namespace: String,
    /// How long one answer may take.
    pub(super) timeout: Option<Duration>,
}

impl ClusterArgs {
    /// Reads the configuration; nothing is asked yet.
    pub(super) async fn connect(&self) -> anyhow::Result<Cluster> {
        let mut config = self.config().await?;
        let Timeout(timeout) = self.request_timeout;
        config.connect_timeout = timeout;
        config.read_timeout = timeout;
        config.write_timeout = timeout;
        // A person waits: what is overloaded or away is told at once.
        config.default_retry = false;
        if let Some(user) = &self.impersonate {
            config.auth_info.impersonate = Some(user.clone());
            config.auth_info.impersonate_groups =
                (!self.impersonate_groups.is_empty()).then(|| self.impersonate_groups.clone());
        }
        let server = config.cluster_url.to_string();
        let default_namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(|fault| anyhow::anyhow!(explain(&fault)))?;
        Ok(Cluster { client, server, default_namespace, timeout })
    }

    async fn config(&self) -> anyhow::Result<Config> {
        let options =
            KubeConfigOptions { context: self.context.clone(), cluster: self.cluster.clone(), user: self.user.clone() };
        let kubeconfig = match &self.kubeconfig {
            Some(file) => Kubeconfig::read_from(file),
            None => Kubeconfig::read(),
        };
        let named = self.kubeconfig.is_some() || std::env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty());
        let kubeconfig = match kubeconfig {
            Ok(kubeconfig) => kubeconfig,
            Err(fault) if named => return Err(anyhow::anyhow!("cannot read the kubeconfig: {fault}")),
            // Without a file, a pod has its service account.
            Err(KubeconfigError::FindPath | KubeconfigError::ReadConfig(..)) => {
                return Config::incluster().map_err(|_| {
                    anyhow::anyhow!(
                        "there is no cluster to talk to: neither $KUBECONFIG nor ~/.kube/config is there, and this is \
                         no pod; give --kubeconfig FILE"
                    )
                });
            }
            Err(fault) => return Err(anyhow::anyhow!("cannot read the kubeconfig: {fault}")),
        };
        let contexts: Vec<String> = kubeconfig.contexts.iter().map(|context| context.name.clone()).collect();
        Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|fault| match fault {
            KubeconfigError::CurrentContextNotSet => no_context(&contexts),
            // `kubectl config unset current-context` leaves an empty one.
            KubeconfigError::LoadContext(name) if name.is_empty() => no_context(&contexts),
            KubeconfigError::LoadContext(name) => {
                anyhow::anyhow!("the kubeconfig has no context '{name}'; give --context, {}", among(&contexts))
            }
            KubeconfigError::LoadClusterOfContext(name) => {
                anyhow::anyhow!("the kubeconfig has no cluster '{name}', which its context (or --cluster) names")
            }
            fault => anyhow::anyhow!("cannot use the kubeconfig: {fault}"),
        })
    }
}

fn no_context(contexts: &[String]) -> anyhow::Error {
    anyhow::anyhow!("the kubeconfig has no current context; give --context, {}", among(contexts))
}

fn among(contexts: &[String]) -> String {
    match contexts {
        [] => "but it has none".to_owned(),
        _ => format!("one of: {}", contexts.join(", ")),
    }
}

impl Cluster {
    /// Objects of a kind in a namespace, or in all.
    pub(super) fn api<K>(&self, namespace: Option<&str>) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// A command's end, in words: which server it is that does not answer.
    pub(super) fn failed(&self, fault: String) -> anyhow::Error {
        if fault.starts_with(NO_ANSWER) { anyhow::anyhow!("{}: {fault}", self.server) } else { anyhow::anyhow!(fault) }
    }

    /// Objects of a kind that has no namespace.
    pub(super) fn global<K: kube::Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }
}

/// All objects of `api` that `params` selects, page by page.
///
/// # Errors
/// What to tell an operator.
pub(super) async fn list<K>(api: &Api<K>, params: ListParams) -> Result<Vec<K>, String>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut params = params.limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&params).await.map_err(|fault| explain(&fault))?;
        all.extend(page.items);
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params = params.continue_token(&token),
            _ => return Ok(all),
        }
    }
}

/// The object of that name; `None`: there is none.
///
/// # Errors
/// What to tell an operator.
pub(super) async fn find<K>(api: &Api<K>, name: &str) -> Result<Option<K>, String>
where
    K: Clone + Debug + DeserializeOwned,
{
    api.get_opt(name).await.map_err(|fault| explain(&fault))
}

/// A fault of the API in words for an operator.
pub(super) fn explain(fault: &kube::Error) -> String {
    match fault {
        kube::Error::Api(status) if status.code == 401 => UNKNOWN_USER.to_owned(),
        // With the message of an object that is not there the two are easily confused.
        kube::Error::Api(status)
            if status.code == 404
                && ["page not found", "could not find the requested resource"]
                    .iter()
                    .any(|said| status.message.contains(said)) =>
        {
            NO_SUCH_KIND.to_owned()
        }
        kube::Error::Api(status) => status.message.trim().to_owned(),
        kube::Error::Auth(fault) => format!("the kubeconfig's way to log in failed: {}", root(fault)),
        kube::Error::ProxyProtocolDisabled { .. } | kube::Error::ProxyProtocolUnsupported { .. } => {
            format!("{fault}; unset HTTPS_PROXY and the kubeconfig's proxy-url, or reach the API server directly")
        }
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(status)) => match status.as_u16() {
            403 => "it is forbidden: you may not get and create pods/portforward in its namespace".to_owned(),
            400 | 404 | 500 | 502 => "its node forwards no connection to it: the pod does not run (yet)".to_owned(),
            _ => format!("the API server forwards no connection to it: {status}"),
        },
        kube::Error::Service(fault) => format!("{NO_ANSWER}: {}", root(fault.as_ref())),
        kube::Error::HyperError(fault) => format!("{NO_ANSWER}: {}", root(fault)),
        fault => root(fault),
    }
}

/// The fault at the bottom: what wraps it says only that something failed.
fn root(fault: &(dyn Error + 'static)) -> String {
    let mut fault = fault;
    while let Some(source) = fault.source() {
        fault = source;
    }
    fault.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        cluster: ClusterArgs,
    }

    fn args(line: &[&str]) -> ClusterArgs {
        Line::try_parse_from([&["weft"], line].concat()).expect("a valid line").cluster
    }

    #[test]
    fn timeouts_are_read_as_kubectl_reads_them() {
        for (text, expected) in [
            ("5", Ok(Some(5))),
            ("0", Ok(None)),
            ("0s", Ok(None)),
            ("1m", Ok(Some(60))),
            ("never", Err(())),
            ("-1", Err(())),
        ] {
            let read = timeout(text).map(|Timeout(limit)| limit.map(|limit| limit.as_secs())).map_err(drop);
            assert_eq!(read, expected, "{text}");
        }
    }

    #[test]
    fn faults_of_a_kubeconfig_say_what_to_give_instead() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            path.to_string_lossy().into_owned()
        };
        let one = "apiVersion: v1\nkind: Config\ncontexts: [{name: a, context: {cluster: c}}]\nclusters: []\n";
        let (missing, current) = (file("one", one), file("two", &format!("current-context: a\n{one}")));
        for (line, said) in [
            (vec!["--kubeconfig", "/nowhere/at-all"], "/nowhere/at-all"),
            (vec!["--kubeconfig", &missing], "no current context; give --context, one of: a"),
            (vec!["--kubeconfig", &missing, "--context", "b"], "no context 'b'; give --context, one of: a"),
            (vec!["--kubeconfig", &current], "no cluster 'c'"),
        ] {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let fault = runtime.block_on(args(&line).config()).expect_err("no cluster");
            assert!(format!("{fault:#}").contains(said), "{line:?}: {fault:#}");
        }
    }

    #[test]
    fn a_kubeconfig_gives_address_namespace_and_user_and_flags_go_before_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config");
        let text = "
apiVersion: v1
kind: Config
current-context: shop
contexts:
- {name: shop, context: {cluster: one, user: reader, namespace: shop}}
- {name: other, context: {cluster: two, user: reader}}
clusters:
- {name: one, cluster: {server: 'https://one.test:6443'}}
- {name: two, cluster: {server: 'https://two.test:6443'}}
users:
- {name: reader, user: {token: t}}
";
        std::fs::write(&path, text).expect("written");
        let path = path.to_string_lossy();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        for (line, server, namespace) in [
            (vec![], "https://one.test:6443/", "shop"),
            (vec!["--context", "other"], "https://two.test:6443/", "default"),
            (vec!["--cluster", "two"], "https://two.test:6443/", "shop"),
        ] {
            let config = runtime.block_on(args(&[vec!["--kubeconfig", &path], line].concat()).config()).expect("valid");
            assert_eq!(
                (config.cluster_url.to_string().as_str(), config.default_namespace.as_str()),
                (server, namespace)
            );
        }
    }
}
