//! What entering the lab promises to the outside: exit codes, signals, and that nothing is left behind.
//!
//! The tests run outside and start this program again with `act MODE TOKEN`, which enters and does something.

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};
use weft_loadtests::lab::{self, Lab, Options, PodSpec, Program, Signal, testing};

const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    lab::init();
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [act, mode, token] = arguments.as_slice()
        && act == "act"
    {
        return self::act(mode, token);
    }
    testing::main_outside(&[
        ("the_exit_code_passes_through", the_exit_code_passes_through),
        ("kill_9_of_the_outer_process_leaves_nothing", kill_9_of_the_outer_process_leaves_nothing),
        ("an_exit_leaves_nothing", an_exit_leaves_nothing),
        ("a_signal_reaches_the_program", a_signal_reaches_the_program),
        ("a_host_listener_is_reachable_from_the_host", a_host_listener_is_reachable_from_the_host),
        ("the_lab_needs_no_privilege", the_lab_needs_no_privilege),
        ("the_lab_works_in_a_lab_with_proc_sys_read_only", the_lab_works_in_a_lab_with_proc_sys_read_only),
        ("a_refusal_names_the_setting_and_tests_are_skipped", a_refusal_names_the_setting_and_tests_are_skipped),
    ]);
}

/// What this program does when a test starts it.
fn act(mode: &str, token: &str) -> Result<()> {
    let host_listener = (mode == "listen").then_some((Ipv4Addr::LOCALHOST, 0).into());
    let entered = lab::enter(Options { host_listener })?;
    match mode {
        "exit-7" => std::process::exit(7),
        "panic" => panic!("as asked"),
        "die" => kill(Pid::this(), Signal::SIGKILL)?,
        "talk" => talk()?,
        "leave" => hold(token)?,
        "hold" => {
            hold(token)?;
            println!("ready");
            thread::sleep(PATIENCE * 10);
        }
        "signal" => {
            let lab = Lab::new("signal")?;
            lab.switch().run(|| async {
                let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
                println!("ready");
                terminate.recv().await;
                anyhow::Ok(())
            })??;
            std::process::exit(5);
        }
        "listen" => {
            let listener = entered.host_listener.context("no listener")?;
            println!("{}", listener.local_addr()?.port());
            listener.accept()?.0.write_all(b"hello")?;
        }
        "read-only" => {
            let none = None::<&str>;
            mount(Some("/proc/sys"), "/proc/sys", none, MsFlags::MS_BIND, none)?;
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            let kept = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(none, "/proc/sys", none, flags | kept, none)?;
            ensure!(fs::write("/proc/sys/net/ipv4/ip_forward", "1").is_err(), "it is writable");
            let (success, output) = nested(Program::this().args(["act", "talk", token]))?;
            ensure!(success, "{output}");
        }
        "forbidden" => {
            fs::write("/proc/sys/user/max_user_namespaces", "0")?;
            let (success, output) = nested(Program::this().args(["act", "talk", token]))?;
            ensure!(!success && output.contains("max_user_namespaces=0"), "{output}");
            let (success, output) = nested(Program::this().env_remove("WEFT_REQUIRE_LAB"))?;
            ensure!(success && output.contains("(skipped: user namespaces are switched off"), "{output}");
            let (success, output) = nested(Program::this().env("WEFT_REQUIRE_LAB", "1"))?;
            ensure!(!success && output.contains("but there is no lab"), "{output}");
        }
        _ => bail!("unknown mode {mode}"),
    }
    Ok(())
}

/// Two pods, and a connection between them.
fn talk() -> Result<()> {
    let lab = Lab::new("talk")?;
    let (a, b) = (lab.pod(PodSpec::new("a"))?, lab.pod(PodSpec::new("b"))?);
    let _listener = b.listen(80)?;
    for address in b.addresses() {
        let address = (*address, 80).into();
        a.run(move || async move { tokio::net::TcpStream::connect::<std::net::SocketAddr>(address).await })??;
    }
    let process = a.spawn(Program::new("id").arg("-u").uid(1000))?;
    ensure!(process.wait(PATIENCE)?.success() && process.stdout() == "1000\n", "{}", process.stderr());
    Ok(())
}

/// A lab that is never dropped, with programs that would run on: in a group and a session of their own.
fn hold(token: &str) -> Result<()> {
    let lab = Lab::new("hold")?;
    let a = lab.pod(PodSpec::new("a"))?;
    let script = "setsid sh -c 'echo started; while :; do sleep 1; done' \"$0\" & wait";
    let process = a.spawn(Program::new("sh").args(["-c", script, token]))?;
    process.wait_for_line(|line| line == "started", PATIENCE)?;
    std::mem::forget((lab, process));
    Ok(())
}

/// Runs this program in a pod. Returns whether it succeeded, and its output.
fn nested(program: Program) -> Result<(bool, String)> {
    let lab = Lab::new("nested")?;
    let process = lab.pod(PodSpec::new("a"))?.spawn(program)?;
    let success = process.wait(PATIENCE)?.success();
    Ok((success, process.stdout() + &process.stderr()))
}

/// This program, to be started by a test. The token is unique to the test.
fn program(mode: &str, token: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["act", mode, token]).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

fn token(name: &str) -> String {
    format!("weft-{name}-{}", std::process::id())
}

/// Reads the first line of the program's output.
fn first_line(child: &mut Child) -> Result<String> {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().context("its output is not piped")?).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// How many processes have the token among their arguments.
fn processes_with(token: &str) -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.split(|byte| *byte == 0).any(|argument| argument == token.as_bytes())).count()
}

fn soon(condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

fn the_exit_code_passes_through() -> Result<()> {
    for (mode, code) in [("exit-7", 7), ("panic", 101), ("die", 128 + 9), ("unknown", 1), ("talk", 0)] {
        let output = program(mode, "-").stderr(Stdio::piped()).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(code), "{mode}: {} {error}", output.status);
    }
    Ok(())
}

fn kill_9_of_the_outer_process_leaves_nothing() -> Result<()> {
    let token = token("kill");
    let mut outer = program("hold", &token).spawn()?;
    ensure!(first_line(&mut outer)? == "ready");
    // The outer process, PID 1, the program itself, a shell and its child.
    let processes = processes_with(&token);
    ensure!(processes >= 5, "only {processes} processes");
    outer.kill()?;
    ensure!(outer.wait()?.signal() == Some(9));
    ensure!(soon(|| processes_with(&token) == 0), "{} processes are left", processes_with(&token));
    ensure!(!fs::exists("/run/weft-lab")?);
    Ok(())
}

fn an_exit_leaves_nothing() -> Result<()> {
    let token = token("exit");
    ensure!(program("leave", &token).status()?.success());
    ensure!(soon(|| processes_with(&token) == 0), "{} processes are left", processes_with(&token));
    ensure!(!fs::exists("/run/weft-lab")?);
    Ok(())
}

fn a_signal_reaches_the_program() -> Result<()> {
    let mut outer = program("signal", "-").spawn()?;
    ensure!(first_line(&mut outer)? == "ready");
    kill(Pid::from_raw(outer.id() as i32), Signal::SIGTERM)?;
    ensure!(outer.wait()?.code() == Some(5));
    Ok(())
}

fn a_host_listener_is_reachable_from_the_host() -> Result<()> {
    let mut outer = program("listen", "-").spawn()?;
    let port: u16 = first_line(&mut outer)?.parse()?;
    let mut text = String::new();
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))?.read_to_string(&mut text)?;
    ensure!(text == "hello" && outer.wait()?.success());
    Ok(())
}

/// As root it is tried as `nobody`, who may do nothing; else as the user who runs the tests.
fn the_lab_needs_no_privilege() -> Result<()> {
    let mut command = program("talk", "-");
    if nix::unistd::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    ensure!(command.status()?.success());
    Ok(())
}

fn the_lab_works_in_a_lab_with_proc_sys_read_only() -> Result<()> {
    ensure!(program("read-only", "-").status()?.success());
    Ok(())
}

fn a_refusal_names_the_setting_and_tests_are_skipped() -> Result<()> {
    ensure!(program("forbidden", "-").status()?.success());
    Ok(())
}
