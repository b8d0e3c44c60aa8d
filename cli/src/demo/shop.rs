//! The shop: a mesh of pods with their applications, and the load on it.
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::Method;
use tokio::sync::oneshot;
use weft_loadtests::lab::{Pod, Process, Program, Task};
use weft_loadtests::load::{Pace, Plan, Report};
use weft_loadtests::mesh::{Mesh, MeshOptions, MeshPod, WorkloadSpec};

use super::apps::{App, PORT};
use super::http::{Answer, Client};
use super::observe::{SharedBoard, lock};
use super::resources;
use super::summary::Requests;

/// Lifetime of the demo's certificates: renewed every 6 to 8 s.
pub(crate) const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(12);
/// Each makes two calls through the mesh.
const ORDERS_PER_SECOND: f64 = 40.0;
const PATIENCE: Duration = Duration::from_secs(20);

/// The most lines of a failing application that are counted.
const FAULTS_READ: usize = 1000;

/// An application in its pod.
#[derive(Debug)]
struct Running {
    pod: String,
    process: Process,
}

/// All that runs. Dropping it ends all of it.
pub(crate) struct Shop {
    apps: Vec<Running>,
    /// The pods with a sidecar: orders, users and both replicas of inventory.
    pub(crate) meshed: Vec<Arc<MeshPod>>,
    /// The pod without.
    pub(crate) stranger: MeshPod,
    /// Its control plane and network.
    pub(crate) mesh: Mesh,
    /// What the checks asked.
    requests: Mutex<Requests>,
}

impl Shop {
    /// Builds it; returns when everything is ready.
    pub(crate) fn open() -> Result<Self> {
        let mut options = MeshOptions::new("/proc/self/exe");
        options.certificate_lifetime = format!("{}s", CERTIFICATE_LIFETIME.as_secs());
        // Refusals and failures: what the view and the checks read.
        options.proxy_arguments = vec!["--access-log".into(), "errors".into()];
        let mesh = Mesh::start("demo", options)?;
        mesh.write("shop.yaml", resources::SHOP)?;
        mesh.write("reports.yaml", &resources::report_readers("auditors"))?;
        let names = resources::ADDRESSES.map(|(name, address)| (name, IpAddr::from(Ipv4Addr::from(address))));
        mesh.lab.hosts(names)?;
        let wanted = [
            ("orders", App::Orders),
            ("users", App::Users),
            ("inventory-1", App::Inventory),
            ("inventory-2", App::Inventory),
        ];
        let built: Vec<Result<(MeshPod, Running)>> = std::thread::scope(|scope| {
            let started = wanted.map(|(name, app)| {
                let mesh = &mesh;
                scope.spawn(move || build(mesh, name, app))
            });
            let joined = started.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            joined.into()
        });
        let (mut meshed, mut apps) = (Vec::new(), Vec::new());
        for one in built {
            let (pod, app) = one?;
            meshed.push(Arc::new(pod));
            apps.push(app);
        }
        let stranger = mesh.pod(WorkloadSpec::new("stranger", "stranger").without_sidecar())?;
        let shop = Self { apps, meshed, stranger, mesh, requests: Mutex::default() };
        shop.wait_until_open()?;
        Ok(shop)
    }

    /// Until an order is complete: every sidecar has been told of every other.
    fn wait_until_open(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = ask(&self.pod("orders").pod, Method::GET, "127.0.0.1:8080", "/orders/first")?;
            match answer {
                Ok(Answer { status: 200, .. }) => return Ok(()),
                other => ensure!(
                    Instant::now() < deadline,
                    "no order succeeded within {PATIENCE:?}: {other:?}\n{}",
                    self.logs(&["orders", "users", "inventory-1", "inventory-2"])
                ),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The pod of this name with a sidecar.
    ///
    /// # Panics
    /// There is none.
    pub(crate) fn pod(&self, name: &str) -> &MeshPod {
        self.meshed.iter().find(|pod| pod.spec.name == name).expect("names of pods are literals of the demo")
    }

    /// Both replicas of inventory.
    pub(crate) fn inventory(&self) -> impl Iterator<Item = &MeshPod> {
        self.meshed.iter().map(Arc::as_ref).filter(|pod| pod.spec.app == "inventory")
    }

    /// One request from a pod, counted by its outcome.
    ///
    /// # Errors
    /// The outer: the lab has ended. The inner: no complete answer.
    pub(crate) fn ask(
        &self,
        from: &Pod,
        method: Method,
        authority: &str,
        path: &str,
    ) -> Result<Result<Answer, String>> {
        let answer = ask(from, method, authority, path)?;
        match &answer {
            Ok(answer) => self.count(|requests| requests.add(answer.status, 1)),
            Err(_) => self.count(|requests| requests.refused += 1),
        }
        Ok(answer)
    }

    /// Counts requests.
    pub(crate) fn count(&self, add: impl FnOnce(&mut Requests)) {
        add(&mut self.requests.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// All requests that were counted.
    pub(crate) fn requests(&self) -> Requests {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last log lines of these pods' sidecars and applications.
    pub(crate) fn logs(&self, pods: &[&str]) -> String {
        let mut text = String::new();
        for pod in self.meshed.iter().filter(|pod| pods.contains(&pod.spec.name.as_str())) {
            let output = pod.sidecar().map(|process| process.stdout() + &process.stderr()).unwrap_or_default();
            text += &tail(&format!("sidecar of {}", pod.spec.name), &output);
        }
        for app in self.apps.iter().filter(|app| pods.contains(&app.pod.as_str())) {
            text += &tail(&format!("application of {}", app.pod), &(app.process.stdout() + &app.process.stderr()));
        }
        text
    }

    /// Why orders failed, as the application of orders told, with their number.
    pub(crate) fn order_faults(&self) -> BTreeMap<String, u64> {
        let mut faults = BTreeMap::new();
        let orders = self.apps.iter().filter(|app| app.pod == "orders");
        for output in orders.map(|app| app.process.stderr()) {
            for line in output.lines().take(FAULTS_READ) {
                *faults.entry(line.to_owned()).or_default() += 1;
            }
        }
        faults
    }

    /// The control plane's last log lines.
    pub(crate) fn control_plane_log(&self) -> String {
        let output = self.mesh.control_plane().map(|process| process.stdout() + &process.stderr()).unwrap_or_default();
        tail("control plane", &output)
    }
}

fn build(mesh: &Mesh, name: &str, app: App) -> Result<(MeshPod, Running)> {
    let pod = mesh.pod(WorkloadSpec::new(name, app.as_str())).with_context(|| format!("pod {name}"))?;
    let process = pod.pod.spawn(Program::this().args(["demo-app", app.as_str()]))?;
    process
        .wait_for_line(|line| line.contains("listens"), PATIENCE)
        .with_context(|| format!("application of {name}"))?;
    Ok((pod, Running { pod: name.to_owned(), process }))
}

fn ask(from: &Pod, method: Method, authority: &str, path: &str) -> Result<Result<Answer, String>> {
    let (authority, path) = (authority.to_owned(), path.to_owned());
    Ok(from.run(move || async move { Client::default().call(method, &authority, &path).await })?)
}

fn tail(whose: &str, output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    let last = &lines[lines.len().saturating_sub(8)..];
    format!("last lines of the {whose}:\n  {}\n", last.join("\n  "))
}

/// Orders at a steady rate, from within the pod of orders.
pub(crate) struct Load {
    board: SharedBoard,
    stop: oneshot::Sender<()>,
    task: Task<Result<Report>>,
}

impl Load {
    /// Starts it; the board shows it. Every order, and so every call to users and inventory, carries `marker`.
    pub(crate) fn start(shop: &Shop, board: &SharedBoard, marker: &str) -> Result<Self> {
        let url = format!("http://127.0.0.1:{PORT}/orders/{marker}").parse()?;
        let plan = Plan::get(url).pace(Pace::Open { per_second: ORDERS_PER_SECOND }).connections(8);
        let plan = plan.connect_to(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)));
        let (stop, mut stopped) = oneshot::channel();
        let shown = Arc::clone(board);
        let task = shop.pod("orders").pod.start(move || async move {
            let load = plan.start()?;
            while tokio::time::timeout(Duration::from_millis(100), &mut stopped).await.is_err() {
                let report = load.report();
                lock(&shown).load = report;
            }
            Ok(load.stop().await)
        })?;
        Ok(Self { board: Arc::clone(board), stop, task })
    }

    /// What came of it so far.
    pub(crate) fn so_far(&self) -> Report {
        lock(&self.board).load.clone()
    }

    /// Ends it and tells what came of it.
    pub(crate) fn stop(self) -> Result<Report> {
        drop(self.stop);
        self.task.join()?
    }
}

/// Orders that did not succeed.
pub(crate) fn failures(report: &Report) -> u64 {
    report.failed() + report.answered() - report.status(200)
}
