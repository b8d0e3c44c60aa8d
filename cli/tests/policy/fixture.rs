//! A folder to work in, and the program.
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

/// Namespace `shop` with default `deny`, Services `inventory` and `orders`, and who may read stock.
pub const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {weft.dev/default-policy: deny}}
---
apiVersion: v1
kind: Service
metadata: {name: inventory, namespace: shop}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}
"#;

/// A policy of namespace `shop`.
pub fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: \
         shop}}\nspec: {spec}\n"
    )
}

pub const READERS: &str = "{targetRefs: [{kind: Service, name: inventory}], action: Allow, rules: [{from: \
                           [{serviceAccounts: [orders]}], to: [{methods: [GET], paths: [\"/stock/{id}\"]}]}]}";

pub struct Folder(TempDir);

/// How the program ended, and what it said.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// With namespace `shop` and `more` in `shop/`.
    pub fn with_shop(more: &str) -> Self {
        let folder = Self::new();
        folder.write("shop/shop.yaml", &format!("{SHOP}{more}"));
        folder
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("written");
    }

    /// Runs `weft` here; what the environment says of a mesh or a cluster does not matter.
    pub fn weft(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        let settings = std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("WEFT_"));
        settings.for_each(|name| {
            command.env_remove(name);
        });
        let output = command.args(arguments).current_dir(self.path()).env("KUBECONFIG", "/nowhere").output();
        let output = output.expect("weft runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// `weft policy test` of the folder `shop` on these cases.
    pub fn test(&self, cases: &str, more: &[&str]) -> Ended {
        self.write("tests.yaml", cases);
        self.weft(&[&["policy", "test", "--resources", "shop", "tests.yaml"], more].concat())
    }

    pub fn write_calls(&self, calls: &[Value]) {
        self.write("calls.json", &json!({"hours": 24, "calls": calls}).to_string());
    }
}

/// An observed call: `GET /stock/{id}` to port 8080 of the Service, or bytes to 5432.
pub fn call(service: &str, source: &str, what: &str, decision: &str) -> Value {
    let source = match source.split_once('/') {
        Some((namespace, name)) => format!("spiffe://cluster.local/ns/{namespace}/sa/{name}"),
        None => source.to_owned(),
    };
    let mut call = json!({
        "destination": {"namespace": "shop", "services": [service], "serviceAccount": service, "labels": {"app": service}},
        "workload": format!("{service}-1"),
        "source": source, "decision": decision, "policy": "default", "count": 7, "lastSeen": 1_796_000_000,
    });
    match what.split_once(' ') {
        Some((method, path)) => {
            (call["port"], call["protocol"], call["method"]) = (8080.into(), "http1".into(), method.into());
            if path != "?" {
                call["path"] = path.into();
            }
        }
        None => (call["port"], call["protocol"]) = (5432.into(), "tcp".into()),
    }
    call
}
