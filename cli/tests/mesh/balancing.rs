//! What callers see when endpoints fail, lag or hang, and when a destination has enough: ejection, repetition within a
//! budget, limits and timeouts, on real sidecars.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use weft_loadtests::lab::{Signal, Task, testing::Test};
use weft_loadtests::load::{Pace, Plan, Report, Version};
use weft_loadtests::mesh::{MeshOptions, MeshPod, WorkloadSpec, eventually};

use crate::fixture::{PATIENCE, Pair, SERVER_SERVICE, WEFT, settle, within};

pub const TESTS: &[Test] = &[
    ("an_endpoint_that_cannot_serve_is_passed_over_and_callers_do_not_notice", one_bad),
    ("an_outage_of_all_endpoints_is_not_made_worse_than_the_retry_budget_allows", all_bad),
    ("a_request_that_got_no_answer_is_sent_again_only_where_that_cannot_do_it_twice", cut_requests),
    ("a_slow_endpoint_gets_little_and_is_passed_over", slow_endpoint),
    ("a_sidecar_that_stands_still_is_passed_over_and_used_again_when_it_goes_on", stopped_sidecar),
    ("a_peer_that_the_network_swallows_is_passed_over_and_used_again_when_it_heals", cut_off),
    ("requests_beyond_a_service_s_limits_get_503_that_says_which", limits),
    ("a_request_that_takes_longer_than_its_service_allows_gets_504", request_timeout),
    ("an_answer_that_stands_still_for_longer_than_its_service_allows_is_cut", idle_timeout),
    ("an_http2_server_that_takes_few_streams_gets_more_connections", few_streams),
    ("a_kept_connection_that_its_server_closed_is_never_used", closed_while_kept),
];

/// What a server of the tests does with a request.
#[derive(Clone, Copy)]
enum Does {
    Answer(u16),
    /// Answers, and closes the connection without having said that it would.
    AnswerAndClose,
    /// Answers 200 so much later.
    Late(Duration),
    /// Reads the request and closes the connection.
    Cut,
    /// Begins an answer and says no more.
    Half,
}

/// A server that counts its requests by their first line.
struct App {
    seen: Arc<Mutex<BTreeMap<String, u64>>>,
    _task: Task<()>,
}

impl App {
    fn start(server: &MeshPod, does: Does) -> Result<Self> {
        let listener = server.pod.listen(8080)?;
        let seen = Arc::<Mutex<BTreeMap<String, u64>>>::default();
        let counted = Arc::clone(&seen);
        let task = server.pod.start(move || async move {
            let listener = TcpListener::from_std(listener).expect("within a runtime");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, does, Arc::clone(&counted)));
            }
        })?;
        Ok(Self { seen, _task: task })
    }

    fn count(&self) -> u64 {
        self.seen.lock().expect("not poisoned").values().sum()
    }

    fn most_of_one(&self) -> u64 {
        self.seen.lock().expect("not poisoned").values().copied().max().unwrap_or_default()
    }
}

async fn serve(mut stream: TcpStream, does: Does, seen: Arc<Mutex<BTreeMap<String, u64>>>) -> std::io::Result<()> {
    while let Some(line) = read_request(&mut stream).await? {
        *seen.lock().expect("not poisoned").entry(line).or_default() += 1;
        let answer = |status: u16| format!("HTTP/1.1 {status} As-Told\r\ncontent-length: 2\r\n\r\nok");
        match does {
            Does::Answer(status) => stream.write_all(answer(status).as_bytes()).await?,
            Does::AnswerAndClose => return stream.write_all(answer(200).as_bytes()).await,
            Does::Late(after) => {
                tokio::time::sleep(after).await;
                stream.write_all(answer(200).as_bytes()).await?;
            }
            Does::Cut => return Ok(()),
            Does::Half => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf").await?;
                std::future::pending().await
            }
        }
    }
    Ok(())
}

/// Reads a request with a body of known length; returns its first line. `None`: there is none.
async fn read_request(stream: &mut TcpStream) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                return Ok(head.lines().next().map(str::to_owned));
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}

/// A mesh with three servers behind the Service, each doing as told.
struct Trio {
    pair: Pair,
    others: [MeshPod; 2],
    apps: [App; 3],
}

impl Trio {
    fn start(name: &str, annotations: &str, does: [Does; 3]) -> Result<Self> {
        let pair = Pair::with(name, one_worker())?;
        annotate(&pair, annotations)?;
        let others = [
            pair.mesh.pod(WorkloadSpec::new("server-2", "server"))?,
            pair.mesh.pod(WorkloadSpec::new("server-3", "server"))?,
        ];
        let apps =
            [App::start(&pair.server, does[0])?, App::start(&others[0], does[1])?, App::start(&others[1], does[2])?];
        settle(&pair.mesh, &[&pair.client])?;
        Ok(Self { pair, others, apps })
    }

    fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        self.pair.client.metric(name, labels)
    }

    fn upstream(&self) -> u64 {
        self.apps.iter().map(App::count).sum()
    }
}

/// So that what one worker has learnt is all that was learnt.
fn one_worker() -> MeshOptions {
    let mut options = MeshOptions::new(WEFT);
    options.proxy_arguments.extend(["--workers".into(), "1".into()]);
    options
}

fn annotate(pair: &Pair, annotations: &str) -> Result<()> {
    let annotated = format!("metadata: {{name: server, namespace: shop, annotations: {{{annotations}}}}}");
    pair.mesh.write("server.yaml", &SERVER_SERVICE.replace("metadata: {name: server, namespace: shop}", &annotated))
}

fn load(pair: &Pair, plan: impl FnOnce(Plan) -> Plan + Send + 'static) -> Result<Report> {
    let url: http::Uri = format!("http://{}/", pair.web()).parse()?;
    pair.client.pod.run(move || async move {
        let mut load = plan(Plan::get(url)).start()?;
        load.finished().await;
        anyhow::Ok(load.stop().await)
    })?
}

fn one_bad() -> Result<()> {
    let trio = Trio::start("onebad", "", [Does::Answer(200), Does::Answer(503), Does::Answer(200)])?;
    let pace = Pace::Open { per_second: 300.0 };
    let report = load(&trio.pair, move |plan| plan.connections(8).pace(pace).requests(1500))?;
    ensure!(report.status(200) == 1500, "{report:?}");
    // Five in a row, those that were under way meanwhile, and a probe now and then.
    ensure!(trio.apps[1].count() < 40, "{} requests to the one that cannot serve", trio.apps[1].count());
    ensure!(trio.metric("weft_endpoint_ejections_total", &["reason=\"failures\""])? >= 1.0);
    let repeated = trio.metric("weft_retries_total", &["decision=\"repeated\"", "destination=\"server\""])?;
    ensure!(repeated == trio.apps[1].count() as f64, "{repeated} repeated, {} failed", trio.apps[1].count());
    let log = trio.pair.client.sidecar()?.stdout();
    ensure!(log.lines().any(|line| line.contains("\"retries\":1")), "the access log shows a repetition");
    Ok(())
}

fn all_bad() -> Result<()> {
    let trio = Trio::start("allbad", "", [Does::Answer(503); 3])?;
    let report = load(&trio.pair, |plan| plan.connections(8).requests(2000))?;
    ensure!(report.status(503) == 2000, "callers get what the servers say: {report:?}");
    let upstream = trio.upstream();
    ensure!((2000..=2400).contains(&upstream), "{upstream} requests for 2000 calls");
    // Without any: the budget is a setting.
    annotate(&trio.pair, "weft.dev/retry-budget: '0'")?;
    settle(&trio.pair.mesh, &[&trio.pair.client])?;
    load(&trio.pair, |plan| plan.connections(8).requests(500))?;
    ensure!(trio.upstream() == upstream + 500, "{} after {upstream}", trio.upstream());
    Ok(())
}

fn cut_requests() -> Result<()> {
    let trio = Trio::start("cutreq", "weft.dev/eject-after: '0'", [Does::Cut, Does::Answer(200), Does::Answer(200)])?;
    let reads = load(&trio.pair, |plan| plan.connections(1).requests(60).pace(Pace::Open { per_second: 30.0 }))?;
    ensure!(reads.status(200) == 60, "{reads:?}");
    let before = trio.upstream();
    let writes = load(&trio.pair, |plan| {
        plan.body(Method::POST, vec![7; 100]).connections(1).requests(60).pace(Pace::Open { per_second: 30.0 })
    })?;
    ensure!(writes.status(502) > 0 && writes.status(200) + writes.status(502) == 60, "{writes:?}");
    ensure!(trio.upstream() - before == 60, "each was sent once: {}", trio.upstream() - before);
    Ok(())
}

fn slow_endpoint() -> Result<()> {
    let trio =
        Trio::start("slow", "", [Does::Answer(200), Does::Late(Duration::from_millis(1500)), Does::Answer(200)])?;
    let pace = Pace::Open { per_second: 150.0 };
    let report = load(&trio.pair, move |plan| plan.connections(64).pace(pace).requests(1500))?;
    ensure!(report.status(200) == 1500, "{report:?}");
    ensure!(trio.apps[1].count() < 75, "{} of 1500 went to the slow one", trio.apps[1].count());
    ensure!(report.latency.quantile(0.9) < Duration::from_millis(500), "{report:?}");
    Ok(())
}

/// Load while `harm` holds, which stops requests to server-2 without any sign; then `mend`.
fn without_a_sign(trio: &Trio, harm: impl FnOnce() -> Result<()>, mend: impl FnOnce() -> Result<()>) -> Result<()> {
    let (pair, app) = (&trio.pair, &trio.apps[1]);
    let ask = |requests| {
        load(pair, move |plan| {
            plan.connections(32).pace(Pace::Open { per_second: 200.0 }).requests(requests).timeout(PATIENCE)
        })
    };
    // One slow first answer keeps calls away from it for a while.
    eventually("server-2 is called", Duration::from_secs(60), || {
        let before = ask(400)?;
        ensure!(before.status(200) == 400, "{before:?}");
        Ok(app.count() > 40)
    })?;
    harm()?;
    eventually("it is passed over", Duration::from_secs(20), || {
        ask(400)?;
        Ok(trio.metric("weft_endpoint_ejections_total", &[])? >= 1.0)
    })?;
    let reached = app.count();
    mend()?;
    eventually("it is used again", Duration::from_secs(60), || {
        ask(200)?;
        Ok(app.count() > reached + 20)
    })?;
    let after = ask(400)?;
    ensure!(after.status(200) == 400, "{after:?}");
    Ok(())
}

fn stopped_sidecar() -> Result<()> {
    let trio = Trio::start("stopped", "", [Does::Answer(200); 3])?;
    let sidecar = trio.others[0].sidecar()?;
    let signal = |signal| {
        sidecar.signal(signal);
        Ok(())
    };
    without_a_sign(&trio, || signal(Signal::SIGSTOP), || signal(Signal::SIGCONT))
}

fn cut_off() -> Result<()> {
    let trio = Trio::start("cutoff", "", [Does::Answer(200); 3])?;
    let pod = &trio.others[0].pod;
    without_a_sign(&trio, || Ok(pod.cut()?), || Ok(pod.heal()?))
}

/// A request from the client with what came back: status, `x-weft-error`, `grpc-status`, whether the body was whole.
async fn ask(address: SocketAddr, head: String) -> Result<(u16, String, String)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("{head} HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    // A cut answer may end with a reset.
    let _ = stream.read_to_end(&mut answer).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).context("no status")?.parse()?;
    let error = text.lines().find_map(|line| line.strip_prefix("x-weft-error: ")).unwrap_or_default().to_owned();
    Ok((status, error, text))
}

/// So many requests at once; how many had which status and error.
fn at_once(pair: &Pair, count: usize, path: &'static str) -> Result<BTreeMap<(u16, String), usize>> {
    let web = pair.web();
    within(&pair.client.pod, move || async move {
        let asking: Vec<_> = (0..count).map(|_| tokio::spawn(ask(web, format!("GET {path}")))).collect();
        let mut came = BTreeMap::new();
        for asked in asking {
            let (status, error, _) = asked.await??;
            *came.entry((status, error)).or_default() += 1;
        }
        Ok(came)
    })
}

fn limits() -> Result<()> {
    let rows = [
        ("weft.dev/max-requests: '4'", 4..=4, "too_many_requests"),
        // One on the connection, unless that is just coming back from the request before, and three that wait for it.
        ("weft.dev/max-connections: '1', weft.dev/max-pending-requests: '3'", 3..=4, "too_many_requests_pending"),
    ];
    let pair = Pair::with("limits", one_worker())?;
    let _app = pair.serve_http()?;
    for (annotations, served, label) in rows {
        annotate(&pair, annotations)?;
        pair.settle()?;
        let came = at_once(&pair, 12, "/delay/700")?;
        let shed = came.get(&(503, label.to_owned())).copied().unwrap_or_default();
        let came_back = came.get(&(200, String::new())).copied().unwrap_or_default();
        ensure!(came_back + shed == 12 && served.contains(&came_back), "{annotations}: {came:?}");
        let counted = pair.client.metric("weft_requests_shed_total", &[&format!("reason=\"{label}\"")])?;
        ensure!(counted == shed as f64, "{counted}");
        let again = at_once(&pair, 1, "/")?;
        ensure!(again.contains_key(&(200, String::new())), "what ended makes room: {again:?}");
    }
    Ok(())
}

fn request_timeout() -> Result<()> {
    let pair = Pair::with("timeout", one_worker())?;
    let _app = pair.serve_http()?;
    annotate(&pair, "weft.dev/request-timeout: 300ms")?;
    pair.settle()?;
    let came = at_once(&pair, 1, "/delay/20000")?;
    ensure!(came.contains_key(&(504, "request_timeout".to_owned())), "{came:?}");
    let came = at_once(&pair, 1, "/bytes/3000000")?;
    ensure!(came.contains_key(&(200, String::new())), "an answer that has begun may take its time: {came:?}");
    Ok(())
}

fn idle_timeout() -> Result<()> {
    let pair = Pair::with("idle", one_worker())?;
    let _app = App::start(&pair.server, Does::Half)?;
    annotate(&pair, "weft.dev/idle-timeout: 300ms")?;
    pair.settle()?;
    let web = pair.web();
    let (status, _, text) = within(&pair.client.pod, move || ask(web, "GET /".to_owned()))?;
    ensure!(status == 200 && text.ends_with("half"), "{text}");
    let log = pair.client.sidecar()?;
    log.wait_for_line(|line| line.contains("\"idle_timeout\""), PATIENCE)?;
    Ok(())
}

/// Serves HTTP/2 with two streams a connection, and answers nobody before `all` have asked.
async fn two_streams(listener: std::net::TcpListener, all: Arc<Barrier>, connections: Arc<AtomicU64>) {
    let listener = TcpListener::from_std(listener).expect("within a runtime");
    while let Ok((stream, _)) = listener.accept().await {
        let all = Arc::clone(&all);
        connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let mut connection =
                h2::server::Builder::new().max_concurrent_streams(2).handshake::<_, bytes::Bytes>(stream).await?;
            while let Some(request) = connection.accept().await {
                let (request, mut respond) = request?;
                let all = Arc::clone(&all);
                tokio::spawn(async move {
                    // The first, alone, lets the other side learn how many streams there are.
                    if request.uri().path() != "/first" {
                        all.wait().await;
                    }
                    respond.send_response(http::Response::new(()), true)
                });
            }
            Ok::<_, h2::Error>(())
        });
    }
}

fn few_streams() -> Result<()> {
    const AT_ONCE: usize = 9;
    let pair = Pair::with("streams", one_worker())?;
    let (all, connections) = (Arc::new(Barrier::new(AT_ONCE)), Arc::<AtomicU64>::default());
    let listener = pair.server.pod.listen(8080)?;
    let counted = Arc::clone(&connections);
    let _app = pair.server.pod.start(move || two_streams(listener, all, counted))?;
    pair.settle()?;
    let first: http::Uri = format!("http://{}/first", pair.web()).parse()?;
    let url: http::Uri = format!("http://{}/", pair.web()).parse()?;
    let report = pair.client.pod.run(move || async move {
        for (url, streams, requests) in [(first.clone(), 1, 1), (first, 1, 1), (url, AT_ONCE, AT_ONCE as u64)] {
            let plan = Plan::get(url).version(Version::Http2).connections(1).streams(streams).requests(requests);
            let mut load = plan.timeout(PATIENCE).start()?;
            load.finished().await;
            let report = load.stop().await;
            anyhow::ensure!(report.status(200) == requests, "{report:?}");
        }
        anyhow::Ok(())
    })?;
    report?;
    let connections = connections.load(Ordering::Relaxed);
    ensure!((5..=9).contains(&connections), "{connections} connections for {AT_ONCE} streams");
    Ok(())
}

fn closed_while_kept() -> Result<()> {
    let pair = Pair::with("kept", one_worker())?;
    let app = App::start(&pair.server, Does::AnswerAndClose)?;
    pair.settle()?;
    for method in [Method::GET, Method::POST] {
        let post = method == Method::POST;
        let report = load(&pair, move |plan| {
            let plan = plan.connections(1).requests(40).pace(Pace::Open { per_second: 50.0 });
            if post { plan.body(Method::POST, vec![7; 100]) } else { plan }
        })?;
        ensure!(report.status(200) == 40, "{method}: {report:?}");
    }
    ensure!(app.count() == 80 && app.most_of_one() == 40, "each was sent once: {}", app.count());
    Ok(())
}
