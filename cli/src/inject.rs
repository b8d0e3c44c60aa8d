//! `weft inject`: puts sidecars into the pod templates of YAML files, as the webhook would into their pods.
//!
//! Every workload is injected unless it or its namespace says otherwise. Documents in which nothing changes are printed
//! byte for byte. Nothing is printed when one workload is refused: what goes to `kubectl apply` is whole or not there.
mod documents;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use documents::{documents_of, is_marked, line_of, parse};
use serde_json::Value;
use weft_control_plane::webhook::injector::{
    INJECT_ANNOTATION, InjectorConfig, NamespaceMeta, Outcome, Redirect, inject,
};

/// Bytes of one file.
const MAX_BYTES: u64 = 64 << 20;

/// Kinds that hold a pod, in their API group, with the way to it.
const WORKLOADS: [(&str, &str, &str); 9] = [
    ("", "Pod", ""),
    ("", "PodTemplate", "/template"),
    ("", "ReplicationController", "/spec/template"),
    ("apps", "DaemonSet", "/spec/template"),
    ("apps", "Deployment", "/spec/template"),
    ("apps", "ReplicaSet", "/spec/template"),
    ("apps", "StatefulSet", "/spec/template"),
    ("batch", "CronJob", "/spec/jobTemplate/spec/template"),
    ("batch", "Job", "/spec/template"),
];

/// Flags of `inject`.
#[derive(Args, Debug)]
pub(crate) struct InjectArgs {
    /// File with YAML documents; `-` is standard input. May be given several times.
    #[arg(short, long, default_value = "-")]
    filename: Vec<PathBuf>,
    /// Namespace of what names none.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// File with the injector's settings, as in the ConfigMap `weft-injector` of a cluster [default: its defaults].
    #[arg(long)]
    config: Option<PathBuf>,
    /// Image of the sidecar, in place of the settings'.
    #[arg(long)]
    image: Option<String>,
    /// How connections come to the sidecar, in place of the settings'.
    #[arg(long, value_enum)]
    redirect: Option<RedirectBy>,
    /// Where sidecars reach the control plane, `host:port`, in place of the settings'.
    #[arg(long)]
    control_plane: Option<String>,
    /// Trust domain of the mesh, in place of the settings'.
    #[arg(long)]
    trust_domain: Option<String>,
}

/// Who writes the redirect rules.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum RedirectBy {
    /// An init container with NET_ADMIN.
    Init,
    /// The node's CNI plugin.
    Cni,
}

/// Prints the injected documents on standard output and what was done on standard error.
pub(crate) fn main(args: &InjectArgs) -> anyhow::Result<ExitCode> {
    let config = config(args)?;
    let texts = args.filename.iter().map(|path| read(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let done = run(&texts.join("\n---\n"), &args.namespace, &config)?;
    for line in &done.report {
        eprintln!("{line}");
    }
    if done.refused {
        bail!("nothing is printed: mend what was refused, or write {INJECT_ANNOTATION}: disabled on it");
    }
    print!("{}", done.text);
    Ok(ExitCode::SUCCESS)
}

fn config(args: &InjectArgs) -> anyhow::Result<InjectorConfig> {
    let mut config = match &args.config {
        Some(path) => InjectorConfig::from_yaml(&read(path)?).with_context(|| path.display().to_string())?,
        None => InjectorConfig::default(),
    };
    let replace = |field: &mut String, flag: &Option<String>| {
        if let Some(value) = flag {
            field.clone_from(value);
        }
    };
    replace(&mut config.image, &args.image);
    replace(&mut config.control_plane, &args.control_plane);
    replace(&mut config.trust_domain, &args.trust_domain);
    match args.redirect {
        Some(RedirectBy::Init) => config.redirect = Redirect::Init,
        Some(RedirectBy::Cni) => config.redirect = Redirect::Cni,
        None => {}
    }
    config.check()?;
    Ok(config)
}

fn read(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).with_context(|| path.display().to_string())?)
    };
    source.take(MAX_BYTES + 1).read_to_string(&mut text).with_context(|| path.display().to_string())?;
    if text.len() as u64 > MAX_BYTES {
        bail!("{}: more than {MAX_BYTES} bytes; give it in parts", path.display());
    }
    Ok(text)
}

/// What became of a text.
struct Done {
    text: String,
    /// A line for each workload.
    report: Vec<String>,
    refused: bool,
}

fn run(text: &str, default_namespace: &str, config: &InjectorConfig) -> anyhow::Result<Done> {
    let mut documents = Vec::new();
    for document in documents_of(text) {
        let value = parse(document).with_context(|| format!("line {}", line_of(text, document)))?;
        documents.push((document, value));
    }
    let mut injection = Injection {
        namespaces: namespaces(documents.iter().map(|(_, value)| value)),
        default_namespace,
        config,
        done: Done { text: String::new(), report: Vec::new(), refused: false },
    };
    for (document, mut value) in documents {
        let changed = injection.object(&mut value);
        let text = &mut injection.done.text;
        if changed {
            if !text.is_empty() {
                text.push_str("---\n");
            }
            text.push_str(&serde_saphyr::to_string(&value)?);
        } else {
            if !text.is_empty() && !is_marked(document) {
                text.push_str("---\n");
            }
            text.push_str(document);
        }
        if !text.ends_with('\n') && !text.is_empty() {
            text.push('\n');
        }
    }
    Ok(injection.done)
}

/// The namespaces that the text declares.
fn namespaces<'v>(documents: impl Iterator<Item = &'v Value>) -> BTreeMap<String, NamespaceMeta> {
    let texts = |value: Option<&Value>| -> BTreeMap<String, String> {
        let entries = value.and_then(Value::as_object).into_iter().flatten();
        entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    };
    let mut found = BTreeMap::new();
    let mut declare = |value: &Value| {
        let metadata = &value["metadata"];
        if value["kind"] == "Namespace"
            && value["apiVersion"] == "v1"
            && let Some(name) = metadata["name"].as_str()
        {
            let (labels, annotations) = (texts(metadata.get("labels")), texts(metadata.get("annotations")));
            found.insert(name.to_owned(), NamespaceMeta { name: name.to_owned(), labels, annotations });
        }
    };
    for document in documents {
        declare(document);
        document["items"].as_array().into_iter().flatten().for_each(&mut declare);
    }
    found
}

/// One run over all documents.
struct Injection<'a> {
    namespaces: BTreeMap<String, NamespaceMeta>,
    default_namespace: &'a str,
    config: &'a InjectorConfig,
    done: Done,
}

impl Injection<'_> {
    /// Injects what the object holds; whether it changed.
    fn object(&mut self, object: &mut Value) -> bool {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let group = version.split_once('/').map_or("", |(group, _)| group);
        if kind.ends_with("List") && object["items"].is_array() {
            let mut changed = false;
            for item in object["items"].as_array_mut().into_iter().flatten() {
                changed |= self.object(item);
            }
            return changed;
        }
        let Some((_, _, path)) = WORKLOADS.iter().find(|known| (known.0, known.1) == (group, kind.as_str())) else {
            return false;
        };
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or_default();
        let namespace = metadata["namespace"].as_str().unwrap_or(self.default_namespace);
        let who = format!("{} {namespace}/{name}", kind.to_lowercase());
        let namespace = self.namespace(namespace);
        let Some(pod) = object.pointer_mut(path) else {
            self.tell(&who, "refused", format_args!("it has no pod template at {path}"));
            self.done.refused = true;
            return false;
        };
        match inject(pod, &namespace, self.config) {
            Outcome::Injected(after) => {
                self.tell(&who, "injected", "");
                *pod = after;
                true
            }
            Outcome::Unchanged(why) => {
                self.tell(&who, "unchanged", why);
                false
            }
            Outcome::Skipped { reason, pod: after } => {
                self.tell(&who, "skipped", reason);
                let changed = *pod != after;
                *pod = after;
                changed
            }
            Outcome::Refused(fault) => {
                self.tell(&who, "refused", fault);
                self.done.refused = true;
                false
            }
        }
    }

    /// What is known of a namespace; one that says nothing of injection is taken for enabled.
    fn namespace(&self, name: &str) -> NamespaceMeta {
        let declared = self.namespaces.get(name).cloned();
        let mut namespace =
            declared.unwrap_or_else(|| NamespaceMeta { name: name.to_owned(), ..NamespaceMeta::default() });
        if !namespace.annotations.contains_key(INJECT_ANNOTATION) && !namespace.labels.contains_key(INJECT_ANNOTATION) {
            namespace.annotations.insert(INJECT_ANNOTATION.to_owned(), "enabled".to_owned());
        }
        namespace
    }

    fn tell(&mut self, who: &str, what: &str, why: impl std::fmt::Display) {
        let mut line = format!("{who}: {what}");
        let why = why.to_string();
        if !why.is_empty() {
            let _ = write!(line, ": {why}");
        }
        // Names come from the file, and standard error is often a terminal.
        self.done.report.push(line.chars().map(|c| if c.is_control() { '?' } else { c }).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(text: &str) -> Done {
        run(text, "default", &InjectorConfig::default()).expect("YAML")
    }

    const OTHERS: &str = "\
# A comment that stays.
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data:
  script: |
    #!/bin/sh
    echo '---'
  mode:   0644   # stays as written
---
apiVersion: v1
kind: Service
metadata:
  name: orders
spec: {ports: [{port: 80}]}
";

    const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: orders, namespace: shop}
spec:
  template:
    spec:
      containers:
      - name: orders
        image: orders:1
        env: [{name: A, value: \"yes\"}, {name: B, value: \"0644\"}, {name: C, value: \"1e3\"}]
      volumes:
      - {name: keys, secret: {secretName: keys, defaultMode: 0400}}
";

    #[test]
    fn documents_in_which_nothing_changes_are_printed_as_they_are() {
        let done = done(OTHERS);
        assert_eq!((done.text.as_str(), done.report.len(), done.refused), (OTHERS, 0, false));
    }

    #[test]
    fn a_workload_gets_its_sidecar_and_keeps_all_else() {
        let done = done(&format!("{OTHERS}---\n{DEPLOYMENT}"));
        assert_eq!(done.report, ["deployment shop/orders: injected"]);
        assert!(done.text.starts_with(OTHERS), "{}", done.text);
        let documents = documents_of(&done.text);
        let injected = parse(documents[2]).expect("YAML");
        let spec = &injected["spec"]["template"]["spec"];
        assert_eq!(spec["initContainers"][1]["name"], "weft-proxy");
        let before = parse(DEPLOYMENT).expect("YAML");
        assert_eq!(spec["containers"], before["spec"]["template"]["spec"]["containers"]);
        assert_eq!(spec["volumes"][0]["secret"]["defaultMode"], 0o400);
        let again = run(&done.text, "default", &InjectorConfig::default()).expect("YAML");
        assert_eq!(
            (again.text, &again.report[..]),
            (done.text, &["deployment shop/orders: unchanged: it has its sidecar already".to_owned()][..])
        );
    }

    #[test]
    fn each_kind_of_workload_is_known() {
        for (group, kind, path) in WORKLOADS {
            let pod = r#"{"spec": {"containers": [{"name": "a"}]}}"#;
            let fields: Vec<&str> = path.split('/').skip(1).collect();
            let body = fields.iter().rev().fold(pod.to_owned(), |inner, field| format!(r#"{{"{field}": {inner}}}"#));
            let mut object = parse(&body).expect("JSON");
            object["apiVersion"] = if group.is_empty() { "v1".into() } else { format!("{group}/v1").into() };
            object["kind"] = kind.into();
            object["metadata"] = serde_json::json!({"name": "a"});
            let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [object]});
            for text in [object.to_string(), list.to_string()] {
                let done = done(&text);
                assert_eq!(done.report, [format!("{} default/a: injected", kind.to_lowercase())]);
                assert!(done.text.contains("weft-init"), "{kind}");
            }
        }
        let other = "apiVersion: example.com/v1\nkind: Deployment\nmetadata: {name: a}\n";
        assert_eq!(done(other).text, other);
    }

    #[test]
    fn what_namespace_or_workload_say_is_done() {
        let namespace = |annotations: &str| {
            format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{{annotations}}}}}\n---\n{DEPLOYMENT}"
            )
        };
        let off = done(&namespace("weft.dev/inject: disabled"));
        assert!(off.report[0].contains("unchanged"), "{:?}", off.report);
        let defaults = done(&namespace("weft.dev/skip-outbound-ports: '5432'"));
        assert!(defaults.text.contains("WEFT_SKIP_OUTBOUND_PORTS"), "{}", defaults.text);
        let out =
            DEPLOYMENT.replace("  template:\n", "  template:\n    metadata: {labels: {weft.dev/inject: disabled}}\n");
        let out = done(&out);
        assert!(out.report[0].contains("skipped: opted-out") && !out.text.contains("weft-proxy"), "{:?}", out.report);
    }

    #[test]
    fn what_is_refused_is_named_and_what_is_no_yaml_too() {
        let refused = done(&DEPLOYMENT.replace("name: orders\n        image", "name: weft-proxy\n        image"));
        assert!(refused.refused && refused.report[0].contains("Weft did not write it"), "{:?}", refused.report);
        assert!(done("apiVersion: apps/v1\nkind: Job\n").report.is_empty());
        assert!(done("apiVersion: batch/v1\nkind: Job\nmetadata: {name: \"a\\u001bb\"}\n").report[0].contains("a?b"));
        for text in ["a: [", "a: 1\na: 2\n", "---\na: 1\n---\nb: {\n"] {
            assert!(run(text, "default", &InjectorConfig::default()).is_err(), "{text}");
        }
    }
}
