//! What the redirect rules promise, proven in pods of the lab: real rules, real connections of both families.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use weft_loadtests::lab::{self, Lab, Pod, PodSpec, Program, Task, testing};
use weft_proxy::redirect::{self, Counter, List, ProxyTraffic, Rules, ValidateArgs, ValidateError, ValidateReport};
use weft_proxy::telemetry::{
    AccessLogMode, DEFAULT_SERIES_BUDGET, Direction, Ends, Kind, LineSink, OtlpSettings, Outcome, Party, Protocol,
    RequestEvent, Telemetry, TelemetrySettings,
};

/// Longer than anything takes here, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const MARK: u32 = 0x2102;
const OUTBOUND: u16 = 4240;
const INBOUND: u16 = 4243;
const ADMIN: u16 = 4291;

/// In the environment: install the rules and exit, instead of running tests.
const INSTALL_AND_EXIT: &str = "WEFT_TEST_INSTALL_AND_EXIT";

fn main() {
    lab::init();
    if std::env::var_os(INSTALL_AND_EXIT).is_some() {
        return redirect::install(&rules()).unwrap_or_else(|fault| {
            eprintln!("{fault}");
            std::process::exit(1);
        });
    }
    testing::main(&[
        ("connections_that_leave_reach_the_sidecar_with_their_destination", leaving_connections_are_captured),
        ("connections_that_enter_reach_the_sidecar_with_their_destination", entering_connections_are_captured),
        ("the_proxys_own_connections_pass", the_proxys_own_connections_pass),
        ("spans_leave_as_the_proxys_own_and_not_through_it", spans_leave_as_the_proxys_own),
        ("loopback_passes", loopback_passes),
        ("skipped_ports_and_subnets_pass_and_are_counted", skipped_ports_and_subnets_pass_and_are_counted),
        ("udp_passes_and_is_counted", udp_passes_and_is_counted),
        ("installing_twice_is_installing_once", installing_twice_is_installing_once),
        ("cleanup_removes_all_and_may_be_repeated", cleanup_removes_all_and_may_be_repeated),
        ("rules_of_somebody_else_are_proven_and_their_absence_too", rules_of_somebody_else_are_proven),
        ("without_the_capability_the_error_names_it", without_the_capability_the_error_names_it),
    ]);
}

/// A pod with a sidecar's ports beside it, and a pod elsewhere.
struct Scene {
    _lab: Lab,
    pod: Pod,
    elsewhere: Pod,
    _servers: Vec<Task<()>>,
}

fn rules() -> Rules {
    Rules {
        proxy: ProxyTraffic { uid: None, mark: Some(MARK) },
        outbound_port: OUTBOUND,
        inbound_port: INBOUND,
        admin_port: ADMIN,
        skip_inbound_ports: vec![],
        skip_outbound_ports: vec![],
        skip_subnets: vec![],
    }
}

/// Both pods serve 8080 to 8090 and 4291 themselves; `pod` has listeners on the sidecar's ports and `rules` in force.
fn scene(rules: Rules) -> Result<Scene> {
    let lab = Lab::new("redirect")?;
    let (pod, elsewhere) = (lab.pod(PodSpec::new("pod"))?, lab.pod(PodSpec::new("elsewhere"))?);
    let mut servers = Vec::new();
    for port in (8080..8090).chain([ADMIN]) {
        servers.push(server(&pod, port, "application")?);
        servers.push(server(&elsewhere, port, "elsewhere")?);
    }
    servers.push(server(&pod, OUTBOUND, "outbound")?);
    servers.push(server(&pod, INBOUND, "inbound")?);
    pod.run(move || async move { redirect::install(&rules) })??;
    Ok(Scene { _lab: lab, pod, elsewhere, _servers: servers })
}

/// Answers each connection with `name`, and with the original destination where there is one.
fn server(pod: &Pod, port: u16, name: &'static str) -> Result<Task<()>> {
    let listener = pod.listen(port)?;
    Ok(pod.start(move || async move {
        let listener = TcpListener::from_std(listener).expect("it is a listening socket");
        while let Ok((mut stream, _)) = listener.accept().await {
            let socket = socket2::SockRef::from(&stream);
            let original = socket.original_dst_v4().or_else(|_| socket.original_dst_v6());
            let original = original.ok().and_then(|address| address.as_socket());
            let original = original.map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()));
            // Connection tracking also knows the destination of a connection that was not redirected: its own.
            let local = stream.local_addr().map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()));
            let answer = match original {
                Some(original) if Ok(original) != local.map_err(drop) => format!("{name} {original}"),
                _ => name.to_owned(),
            };
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })?)
}

/// Who answers a connection from `pod` to `to`.
fn answer(pod: &Pod, to: SocketAddr, mark: Option<u32>) -> Result<String> {
    pod.run(move || async move {
        let ask = async {
            let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            if let Some(mark) = mark {
                socket2::SockRef::from(&socket).set_mark(mark)?;
            }
            let mut stream = socket.connect(to).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        tokio::time::timeout(PATIENCE, ask).await.context("no answer")?
    })?
    .with_context(|| format!("asking {to}"))
}

fn counters(pod: &Pod) -> Result<Vec<Counter>> {
    Ok(pod.run(|| async { redirect::counters() })??)
}

/// Packets that the rule `rule` of `chain` has seen.
fn counted(pod: &Pod, chain: &str, rule: &str) -> Result<u64> {
    let counters = counters(pod)?;
    let found = counters.iter().find(|counter| counter.chain == chain && counter.rule == rule);
    Ok(found.with_context(|| format!("no rule `{rule}` in {chain}: {counters:?}"))?.packets)
}

/// Nothing answers at these: the rules act before routing would find out.
fn far_away() -> Result<[SocketAddr; 2]> {
    Ok(["192.0.2.5:8080".parse()?, "[2001:db8::5]:8081".parse()?])
}

fn leaving_connections_are_captured() -> Result<()> {
    let scene = scene(rules())?;
    let there = scene.elsewhere.addresses().iter().map(|address| SocketAddr::new(*address, 8080));
    for to in there.chain(far_away()?) {
        ensure!(answer(&scene.pod, to, None)? == format!("outbound {to}"), "{to}");
    }
    ensure!(counted(&scene.pod, "outbound", "redirect")? == 4, "{:?}", counters(&scene.pod)?);
    Ok(())
}

fn entering_connections_are_captured() -> Result<()> {
    let scene = scene(rules())?;
    for address in scene.pod.addresses() {
        for port in [8080, 9999, OUTBOUND, INBOUND] {
            let to = SocketAddr::new(*address, port);
            ensure!(answer(&scene.elsewhere, to, None)?.starts_with("inbound"), "{to}");
        }
        let to = SocketAddr::new(*address, 8081);
        ensure!(answer(&scene.elsewhere, to, None)? == format!("inbound {to}"), "{to}");
        let admin = SocketAddr::new(*address, ADMIN);
        ensure!(answer(&scene.elsewhere, admin, None)? == "application", "the admin port is reached directly");
    }
    ensure!(counted(&scene.pod, "inbound", "redirect")? == 10);
    ensure!(counted(&scene.pod, "inbound", "port 4291")? == 2);
    Ok(())
}

fn the_proxys_own_connections_pass() -> Result<()> {
    let scene = scene(rules())?;
    for address in scene.elsewhere.addresses() {
        let to = SocketAddr::new(*address, 8080);
        ensure!(answer(&scene.pod, to, Some(MARK))? == "elsewhere");
        ensure!(answer(&scene.pod, to, Some(MARK + 1))? == format!("outbound {to}"), "another mark is nobody's");
    }
    ensure!(counted(&scene.pod, "outbound", "proxy mark")? == 2);
    Ok(())
}

fn spans_leave_as_the_proxys_own() -> Result<()> {
    let scene = scene(rules())?;
    let collector = SocketAddr::new(scene.elsewhere.addresses()[0], 8080);
    let party = || Party::new("orders", "shop");
    let settings = TelemetrySettings {
        workload: party(),
        series_budget: DEFAULT_SERIES_BUDGET,
        access_log: AccessLogMode::Off,
        otlp: Some(OtlpSettings { endpoint: format!("http://{collector}"), sampling_ratio: 1.0, mark: Some(MARK) }),
    };
    scene.pod.run(move || async move {
        let (lines, _guard) = LineSink::new(std::io::sink());
        let telemetry = Telemetry::new(settings, lines)?;
        let worker = telemetry.worker();
        let ends = Ends {
            direction: Direction::Outbound,
            source: party(),
            destination: party(),
            protocol: Protocol::Http1,
            tls: true,
        };
        let event = RequestEvent {
            ends: &ends,
            method: "GET",
            path: "/",
            host: "users",
            status: 200,
            grpc_status: None,
            duration: Duration::from_millis(1),
            overhead: None,
            request_bytes: 0,
            response_bytes: 0,
            retries: 0,
            outcome: Outcome::Forwarded,
            peer_identity: None,
            peer_address: None,
            route: None,
        };
        worker.request(&event, worker.start_span(Kind::Client, &http::HeaderMap::new()));
        // What answers is no collector: that it was reached is enough.
        drop(worker);
        telemetry.flush(PATIENCE).await;
        anyhow::Ok(())
    })??;
    ensure!(counted(&scene.pod, "outbound", "proxy mark")? > 0, "{:?}", counters(&scene.pod)?);
    ensure!(counted(&scene.pod, "outbound", "redirect")? == 0, "{:?}", counters(&scene.pod)?);
    Ok(())
}

fn loopback_passes() -> Result<()> {
    let scene = scene(rules())?;
    let own: Vec<IpAddr> = scene.pod.addresses().to_vec();
    for address in [IpAddr::from([127, 0, 0, 1]), "::1".parse()?].into_iter().chain(own) {
        ensure!(answer(&scene.pod, (address, 8080).into(), None)? == "application", "{address}");
    }
    ensure!(counted(&scene.pod, "outbound", "loopback")? == 4);
    Ok(())
}

fn skipped_ports_and_subnets_pass_and_are_counted() -> Result<()> {
    let ports = |text: &str| text.split(',').map(|range| range.parse()).collect::<Result<Vec<_>, _>>();
    let outside = ["203.0.113.7".parse::<IpAddr>()?, "2001:db8:77::1".parse()?];
    let rules = Rules {
        skip_inbound_ports: ports("8082,8084-8085").map_err(anyhow::Error::msg)?,
        skip_outbound_ports: ports("8083,8086-8087").map_err(anyhow::Error::msg)?,
        skip_subnets: vec!["203.0.113.0/25".parse()?, "2001:db8:77::/48".parse()?],
        ..rules()
    };
    let scene = scene(rules)?;
    for address in outside {
        scene.elsewhere.add_address(address)?;
        ensure!(answer(&scene.pod, (address, 8080).into(), None)? == "elsewhere", "{address}");
    }
    let beside: SocketAddr = "203.0.113.128:8080".parse()?;
    ensure!(answer(&scene.pod, beside, None)? == format!("outbound {beside}"), "just outside the subnet");
    for (address, own) in scene.elsewhere.addresses().iter().zip(scene.pod.addresses()) {
        for (port, inbound, outbound) in [
            (8081, false, false),
            (8082, true, false),
            (8083, false, true),
            (8084, true, false),
            (8085, true, false),
            (8086, false, true),
            (8087, false, true),
            (8088, false, false),
        ] {
            let there = SocketAddr::new(*address, port);
            let expected = if outbound { "elsewhere".into() } else { format!("outbound {there}") };
            ensure!(answer(&scene.pod, there, None)? == expected, "to {there}");
            let here = SocketAddr::new(*own, port);
            let expected = if inbound { "application".into() } else { format!("inbound {here}") };
            ensure!(answer(&scene.elsewhere, here, None)? == expected, "from elsewhere to {here}");
        }
    }
    for (chain, rule, packets) in [
        ("outbound", "subnet 203.0.113.0/25", 1),
        ("outbound", "subnet 2001:db8:77::/48", 1),
        ("outbound", "port 8083", 2),
        ("outbound", "port 8086-8087", 4),
        ("inbound", "port 8082", 2),
        ("inbound", "port 8084-8085", 4),
    ] {
        ensure!(counted(&scene.pod, chain, rule)? == packets, "{chain} {rule}: {:?}", counters(&scene.pod)?);
    }
    Ok(())
}

fn udp_passes_and_is_counted() -> Result<()> {
    let scene = scene(rules())?;
    let server = scene.elsewhere.udp(5353)?;
    for to in scene.elsewhere.addresses().iter().map(|address| SocketAddr::new(*address, 5353)) {
        scene.pod.run(move || async move {
            let from: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
            UdpSocket::bind((from, 0)).await?.send_to(b"hello", to).await
        })??;
    }
    let received = scene.elsewhere.run(move || async move {
        let server = UdpSocket::from_std(server)?;
        let mut buffer = [0; 16];
        for _ in 0..2 {
            let (len, _) = tokio::time::timeout(PATIENCE, server.recv_from(&mut buffer)).await??;
            anyhow::ensure!(&buffer[..len] == b"hello");
        }
        anyhow::Ok(())
    })?;
    received.context("both datagrams arrive")?;
    ensure!(counted(&scene.pod, "uncaptured", "udp")? == 2, "{:?}", counters(&scene.pod)?);
    ensure!(counted(&scene.pod, "uncaptured", "other")? == 0, "{:?}", counters(&scene.pod)?);
    Ok(())
}

fn installing_twice_is_installing_once() -> Result<()> {
    let scene = scene(rules())?;
    let first = counters(&scene.pod)?;
    scene.pod.run(|| async { redirect::install(&rules()) })??;
    let again = counters(&scene.pod)?;
    let names = |counters: &[Counter]| counters.iter().map(|c| (c.chain.clone(), c.rule.clone())).collect::<Vec<_>>();
    ensure!(names(&first) == names(&again), "{first:?} then {again:?}");
    let to = far_away()?[0];
    ensure!(answer(&scene.pod, to, None)? == format!("outbound {to}"));
    ensure!(counted(&scene.pod, "outbound", "redirect")? == 1, "a connection is counted once");
    Ok(())
}

fn cleanup_removes_all_and_may_be_repeated() -> Result<()> {
    let scene = scene(rules())?;
    ensure!(scene.pod.run(|| async { redirect::installed() })??);
    for _ in 0..2 {
        scene.pod.run(|| async { redirect::cleanup() })??;
        ensure!(!scene.pod.run(|| async { redirect::installed() })??);
    }
    ensure!(counters(&scene.pod)?.is_empty());
    let there = SocketAddr::new(scene.elsewhere.addresses()[0], 8080);
    ensure!(answer(&scene.pod, there, None)? == "elsewhere");
    Ok(())
}

fn rules_of_somebody_else_are_proven() -> Result<()> {
    let lab = Lab::new("validate")?;
    let pod = lab.pod(PodSpec::new("pod"))?;
    let args = |skip: &str, timeout| {
        let skip_subnets = redirect::parse_subnets(skip).map_err(anyhow::Error::msg)?;
        anyhow::Ok(ValidateArgs {
            outbound_port: OUTBOUND,
            skip_outbound_ports: List(Vec::new()),
            skip_subnets,
            timeout,
        })
    };
    let prove = |args: ValidateArgs| pod.run(move || async move { redirect::run_validate(&args) });

    match prove(args("", Duration::ZERO)?)? {
        Err(fault @ ValidateError::NotCaptured { family: "IPv4", .. }) => {
            ensure!(fault.to_string().contains("kubectl get pods"), "{fault}");
        }
        other => anyhow::bail!("there are no rules: {other:?}"),
    }
    let skip = "192.0.2.0/24,3fff::/16";
    let rules = Rules { skip_subnets: redirect::parse_subnets(skip).map_err(anyhow::Error::msg)?.0, ..rules() };
    pod.run(move || async move { redirect::install(&rules) })??;
    for (skipped, captured, whole) in [
        (skip, &["IPv4", "IPv6"][..], &[][..]),
        ("192.0.2.0/24,::/0", &["IPv4"], &["IPv6"]),
        ("0.0.0.0/0,::/0", &[], &["IPv4", "IPv6"]),
    ] {
        let report = prove(args(skipped, PATIENCE)?)??;
        let expected = ValidateReport { captured: captured.to_vec(), skipped: whole.to_vec() };
        ensure!(report == expected, "{skipped}: {report:?}");
    }
    match prove(args("", Duration::ZERO)?)? {
        Err(ValidateError::NotCaptured { family: "IPv4", .. }) => {}
        other => anyhow::bail!("the rules leave alone what is not known to be left alone: {other:?}"),
    }
    let taken = pod.listen(OUTBOUND)?;
    match prove(args(skip, PATIENCE)?)? {
        Err(ValidateError::Listen(..)) => {}
        other => anyhow::bail!("a sidecar is there already: {other:?}"),
    }
    drop(taken);
    Ok(())
}

fn without_the_capability_the_error_names_it() -> Result<()> {
    let lab = Lab::new("powerless")?;
    let pod = lab.pod(PodSpec::new("pod"))?;
    let install = Program::this().env(INSTALL_AND_EXIT, "1").uid(2102);
    let process = pod.spawn(install)?;
    ensure!(!process.wait(PATIENCE)?.success(), "rules were written without the capability");
    ensure!(process.stderr().contains("CAP_NET_ADMIN"), "{}", process.stderr());
    Ok(())
}
