//! What the lab promises, proven with real pods. See `weft_loadtests::lab::testing` for how these are run.

use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_loadtests::lab::{Lab, Output, Pod, PodSpec, Program, Signal, Task, testing};

/// Longer than anything takes here, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    testing::main(&[
        ("two_pods_reach_each_other_over_both_families", two_pods_reach_each_other_over_both_families),
        ("a_pod_has_only_its_own_addresses_and_loopback", a_pod_has_only_its_own_addresses_and_loopback),
        ("an_outside_address_is_reachable_without_a_router", an_outside_address_is_reachable_without_a_router),
        ("a_cut_pod_is_unreachable_and_heals", a_cut_pod_is_unreachable_and_heals),
        ("names_resolve_in_spawned_programs_and_in_run", names_resolve_in_spawned_programs_and_in_run),
        ("labs_with_the_same_names_and_addresses_do_not_meet", labs_with_the_same_names_and_addresses_do_not_meet),
        ("a_capture_sees_plaintext_between_pods_once", a_capture_sees_plaintext_between_pods_once),
        ("a_capture_holds_large_segments_whole", a_capture_holds_large_segments_whole),
        ("output_is_captured_and_an_exit_code_reported", output_is_captured_and_an_exit_code_reported),
        ("a_program_gets_signals_and_ends_with_its_handle", a_program_gets_signals_and_ends_with_its_handle),
        ("a_program_with_a_uid_has_it_and_no_power_over_the_network", a_program_with_a_uid_has_no_power),
        ("measurements_of_a_running_program_are_plausible", measurements_of_a_running_program_are_plausible),
        ("a_dropped_lab_ends_programs_their_children_and_tasks", a_dropped_lab_ends_everything),
        ("a_panic_in_a_pod_reaches_the_caller", a_panic_in_a_pod_reaches_the_caller),
        ("bad_names_and_doubles_are_refused", bad_names_and_doubles_are_refused),
    ]);
}

/// Two pods, `a` and `b`.
fn two_pods() -> Result<(Lab, Pod, Pod)> {
    let lab = Lab::new("test")?;
    let (a, b) = (lab.pod(PodSpec::new("a"))?, lab.pod(PodSpec::new("b"))?);
    Ok((lab, a, b))
}

/// A server in `pod` that answers every connection with what it read until the end, in capitals.
fn shouter(pod: &Pod, port: u16) -> Result<Task<()>> {
    let listener = pod.listen(port)?;
    Ok(pod.start(move || async move {
        let listener = TcpListener::from_std(listener).expect("it is a listening socket");
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                connection.read_to_end(&mut bytes).await?;
                connection.write_all(&bytes.to_ascii_uppercase()).await
            });
        }
    })?)
}

/// Asks a [`shouter`] from `pod`. Fails after two seconds without an answer.
fn shout(pod: &Pod, server: SocketAddr, text: &str) -> Result<String> {
    let text = text.to_owned();
    pod.run(move || async move {
        let ask = async {
            let mut connection = TcpStream::connect(server).await?;
            connection.write_all(text.as_bytes()).await?;
            connection.shutdown().await?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        tokio::time::timeout(Duration::from_secs(2), ask).await.context("no answer")?
    })?
}

fn two_pods_reach_each_other_over_both_families() -> Result<()> {
    let (lab, a, b) = two_pods()?;
    let _server = shouter(&b, 8080)?;
    for address in b.addresses() {
        for client in [&a, &b, lab.switch()] {
            ensure!(shout(client, (*address, 8080).into(), "hello")? == "HELLO", "{} to {address}", client.name());
        }
    }
    ensure!(b.addresses().iter().any(IpAddr::is_ipv4) && b.addresses().iter().any(IpAddr::is_ipv6));
    Ok(())
}

fn a_pod_has_only_its_own_addresses_and_loopback() -> Result<()> {
    let (_lab, a, b) = two_pods()?;
    let _server = shouter(&b, 8080)?;
    for loopback in ["127.0.0.1:8080", "[::1]:8080"] {
        ensure!(shout(&b, loopback.parse()?, "hello")? == "HELLO");
        ensure!(shout(&a, loopback.parse()?, "hello").is_err(), "{loopback} of b answers in a");
    }
    Ok(())
}

fn an_outside_address_is_reachable_without_a_router() -> Result<()> {
    let lab = Lab::new("outside")?;
    let a = lab.pod(PodSpec::new("a"))?;
    let addresses: [IpAddr; 2] = ["203.0.113.7".parse()?, "2001:db8::7".parse()?];
    let outside = lab.pod(PodSpec::new("outside").address(addresses[0]).address(addresses[1]))?;
    let later: IpAddr = "198.51.100.9".parse()?;
    outside.add_address(later)?;
    let _server = shouter(&outside, 443)?;
    for address in addresses.into_iter().chain([later]) {
        ensure!(shout(&a, (address, 443).into(), "hello")? == "HELLO", "{address}");
    }
    Ok(())
}

fn a_cut_pod_is_unreachable_and_heals() -> Result<()> {
    let (_lab, a, b) = two_pods()?;
    let _server = shouter(&b, 8080)?;
    ensure!(shout(&a, b.address(8080), "before")? == "BEFORE");
    b.cut()?;
    ensure!(shout(&a, b.address(8080), "cut").is_err(), "a cut pod answered");
    ensure!(shout(&b, b.address(8080), "itself")? == "ITSELF", "a cut pod does not reach itself");
    b.heal()?;
    ensure!(shout(&a, b.address(8080), "after")? == "AFTER");
    Ok(())
}

fn names_resolve_in_spawned_programs_and_in_run() -> Result<()> {
    let (lab, a, b) = two_pods()?;
    lab.hosts([("inventory.shop.svc", "10.96.0.10".parse()?), ("inventory.shop.svc", "10.96.0.11".parse()?)])?;
    let process = a.spawn(Program::new("getent").args(["ahostsv4", "inventory.shop.svc"]))?;
    ensure!(process.wait(PATIENCE)?.success(), "{}", process.stderr());
    ensure!(process.stdout().contains("10.96.0.10 ") && process.stdout().contains("10.96.0.11 "));
    let found = a.run(|| async { Ok::<_, std::io::Error>(tokio::net::lookup_host("b:80").await?.collect::<Vec<_>>()) });
    let found = found??;
    ensure!(b.addresses().iter().all(|address| found.contains(&(*address, 80).into())), "{found:?}");
    // Given again, a name has its new addresses only, also in pods that exist.
    lab.hosts([("inventory.shop.svc", "10.96.0.12".parse()?)])?;
    let process = a.spawn(Program::new("getent").args(["ahostsv4", "inventory.shop.svc"]).uid(1000))?;
    ensure!(process.wait(PATIENCE)?.success(), "{}", process.stderr());
    ensure!(process.stdout().contains("10.96.0.12 ") && !process.stdout().contains("10.96.0.10 "));
    Ok(())
}

fn labs_with_the_same_names_and_addresses_do_not_meet() -> Result<()> {
    let (_one, a, _b) = two_pods()?;
    let (_other, _a, b) = two_pods()?;
    ensure!(a.addresses() == _a.addresses());
    let _server = shouter(&b, 8080)?;
    ensure!(shout(&_a, b.address(8080), "here")? == "HERE");
    ensure!(shout(&a, b.address(8080), "there").is_err(), "a pod of another lab answered");
    Ok(())
}

fn a_capture_sees_plaintext_between_pods_once() -> Result<()> {
    let (lab, a, b) = two_pods()?;
    let _server = shouter(&b, 8080)?;
    let capture = lab.capture()?;
    shout(&a, b.address(8080), "a known plaintext")?;
    let frames = capture.stop()?;
    ensure!(frames.contains("a known plaintext") && frames.contains("A KNOWN PLAINTEXT"));
    ensure!(!frames.contains("an unknown plaintext"));
    let with = frames.iter().filter(|frame| frame.bytes.windows(5).any(|bytes| bytes == b"known")).count();
    ensure!(with == 1, "seen {with} times");
    let (from, to) = (a.address(0).ip(), b.address(0).ip());
    ensure!(frames.between(from, to).streams().len() == 2, "{:?}", frames.streams());
    Ok(())
}

fn a_capture_holds_large_segments_whole() -> Result<()> {
    let (lab, a, b) = two_pods()?;
    let _server = shouter(&b, 8080)?;
    let text: String = (0..20_000).map(|n| format!("{n:06x}")).collect();
    let capture = lab.capture()?;
    ensure!(shout(&a, b.address(8080), &text)? == text.to_ascii_uppercase());
    let frames = capture.stop()?;
    ensure!(frames.contains(&text), "{:?}", frames.iter().map(|frame| frame.bytes.len()).collect::<Vec<_>>());
    Ok(())
}

fn output_is_captured_and_an_exit_code_reported() -> Result<()> {
    let (_lab, a, _b) = two_pods()?;
    let script = "echo to out; echo to err >&2; hostname; printf unfinished; exit 7";
    let process = a.spawn(Program::new("sh").args(["-c", script]))?;
    ensure!(process.wait_for_line(|line| line == "to err", PATIENCE)? == "to err");
    ensure!(process.wait(PATIENCE)?.code() == Some(7));
    ensure!(process.stdout() == "to out\na\nunfinished\n" && process.stderr() == "to err\n", "{}", process.stdout());
    let error = process.wait_for_line(|line| line == "never", PATIENCE).err().context("a line out of nothing")?;
    ensure!(error.to_string().contains("unfinished"), "{error}");
    let file = a.directory().join("log");
    let quiet = a.spawn(Program::new("echo").arg("hello").output(Output::File(file.clone())))?;
    ensure!(quiet.wait(PATIENCE)?.success() && std::fs::read_to_string(file)? == "hello\n");
    ensure!(a.spawn(Program::new("/does/not/exist")).is_err());
    let process = a.spawn(Program::new("/does/not/exist").uid(1000))?;
    ensure!(process.wait(PATIENCE)?.code() == Some(127) && process.stderr().contains("/does/not/exist"));
    Ok(())
}

fn a_program_gets_signals_and_ends_with_its_handle() -> Result<()> {
    let (_lab, a, _b) = two_pods()?;
    let script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let process = a.spawn(Program::new("sh").args(["-c", script]))?;
    process.wait_for_line(|line| line == "ready", PATIENCE)?;
    ensure!(process.try_wait().is_none());
    process.signal(Signal::SIGTERM);
    ensure!(process.wait(PATIENCE)?.code() == Some(3) && process.stdout().ends_with("bye\n"));
    let file = a.directory().join("alive");
    let stubborn = a.spawn(Program::new("sh").args(["-c", "trap '' TERM; echo ready; sleep 1000"]))?;
    stubborn.wait_for_line(|line| line == "ready", PATIENCE)?;
    let id = stubborn.id();
    drop(stubborn);
    ensure!(!exists(id), "process {id} outlived its handle");
    ensure!(!file.exists());
    Ok(())
}

/// Whether the process can be signalled.
fn exists(pid: u32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), None).is_ok()
}

fn a_program_with_a_uid_has_no_power() -> Result<()> {
    let (_lab, a, _b) = two_pods()?;
    let script = "id -u; id -g; ulimit -n; grep CapEff /proc/self/status; env | grep WEFT_LAB; true";
    let process = a.spawn(Program::new("sh").args(["-c", script]).uid(1000).open_files(123))?;
    ensure!(process.wait(PATIENCE)?.success(), "{}", process.stderr());
    let wanted = "1000\n1000\n123\nCapEff:\t0000000000000000\n";
    ensure!(process.stdout() == wanted, "{}", process.stdout());
    let process = a.spawn(Program::new("sh").args(["-c", "id -u; env | grep WEFT_LAB; true"]))?;
    process.wait(PATIENCE)?;
    ensure!(process.stdout() == "0\n", "{}", process.stdout());
    Ok(())
}

fn measurements_of_a_running_program_are_plausible() -> Result<()> {
    let (_lab, a, _b) = two_pods()?;
    let busy = a.spawn(
        Program::new("sh").args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo done; sleep 1000"]),
    )?;
    busy.wait_for_line(|line| line == "done", PATIENCE)?;
    let own_proc = std::fs::read_link("/proc/self")? == std::path::Path::new(&std::process::id().to_string());
    ensure!(busy.cpu_time().is_some() == own_proc && busy.resident_memory().is_some() == own_proc);
    if own_proc {
        ensure!(busy.cpu_time() > Some(Duration::ZERO) && busy.resident_memory() > Some(100_000));
    }
    busy.signal(Signal::SIGKILL);
    busy.wait(PATIENCE)?;
    ensure!(busy.cpu_time().is_none());
    Ok(())
}

fn a_dropped_lab_ends_everything() -> Result<()> {
    let (lab, a, b) = two_pods()?;
    let script = "setsid sleep 1000 & echo $!; wait";
    let process = a.spawn(Program::new("sh").args(["-c", script]))?;
    let child: u32 = process.wait_for_line(|_| true, PATIENCE)?.parse()?;
    let (mut end, mut held) = std::os::unix::net::UnixStream::pair()?;
    let task = b.start(move || async move {
        let _ = held.write_all(b"x");
        std::future::pending::<()>().await;
        drop(held);
    })?;
    end.read_exact(&mut [0])?;
    let directory = lab.directory().to_owned();
    let capture = lab.capture()?;
    drop(lab);
    ensure!(capture.stop().is_ok());
    ensure!(process.try_wait().is_some(), "the program lives");
    let own_proc = std::fs::read_link("/proc/self")? == std::path::Path::new(&std::process::id().to_string());
    ensure!(!own_proc || gone(child), "its child lives");
    ensure!(end.read(&mut [0])? == 0, "the task lives");
    ensure!(task.join().is_err() && !directory.exists());
    ensure!(a.spawn(Program::new("true")).is_err() && a.run(|| async {}).is_err());
    Ok(())
}

/// Whether a process of another parent has ended; PID 1 may need a moment to reap it.
fn gone(pid: u32) -> bool {
    (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        !exists(pid)
    })
}

fn a_panic_in_a_pod_reaches_the_caller() -> Result<()> {
    let (_lab, a, _b) = two_pods()?;
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        a.run(|| async { assert_eq!(1 + 1, 3, "a promise of this test") })
    }));
    ensure!(panic.is_err() && a.run(|| async { 5 })? == 5);
    Ok(())
}

fn bad_names_and_doubles_are_refused() -> Result<()> {
    let (lab, _a, _b) = two_pods()?;
    for name in ["", "..", "a/b", "a\nb", "-a", "a", &"x".repeat(64)] {
        ensure!(lab.pod(PodSpec::new(name)).is_err(), "{name:?} was taken");
    }
    ensure!(lab.hosts([("a b", "10.0.0.1".parse()?)]).is_err());
    Ok(())
}
