//! The way into the namespaces, and the stages in which this program is run again on the way.
//!
//! Promises: on an error the calling process is unchanged; on success [`enter`] returns inside only. Must never leave
//! a process behind. Next: [`super::pid1`] is the stage `init`, [`super::launch`] the stage `launch`.

use super::diagnose::{Failure, Settings, Step, Unavailable, diagnose};
use super::{launch, netlink, pid1};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, fs};

/// Which stage this process is: `probe`, `init`, `inside` or `launch`; absent in an ordinary start.
pub(crate) const STAGE: &str = "WEFT_LAB_STAGE";
/// The outer process as `/proc` names it, for the stage `init`.
pub(crate) const PARENT: &str = "WEFT_LAB_PARENT";
/// Set when standard input is the listener of [`Options::host_listener`].
pub(crate) const LISTENER: &str = "WEFT_LAB_LISTENER";

static INITIALIZED: AtomicBool = AtomicBool::new(false);

/// How to enter.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Listen on this address of the host and hand the socket in: the one way from the host's network into the lab,
    /// made for a dashboard that the user's browser opens. It takes the place of standard input.
    pub host_listener: Option<SocketAddr>,
}

/// Proof that this process is inside.
#[derive(Debug)]
pub struct Entered {
    /// The socket that [`Options::host_listener`] asked for, in the host's network.
    pub host_listener: Option<TcpListener>,
}

/// Must be the first statement of `main` in every program that uses the lab: the lab runs the same program again for
/// its own duties, and this is where these are done. In an ordinary start it returns at once.
pub fn init() {
    if INITIALIZED.swap(true, Ordering::SeqCst) {
        return;
    }
    match env::var(STAGE).as_deref() {
        Ok("probe") => std::process::exit(answer_probe()),
        Ok("init") => std::process::exit(pid1::run()),
        Ok("launch") => std::process::exit(launch::run()),
        // PID 1 had them blocked, and a mask survives exec.
        Ok("inside") => drop(supervised_signals().thread_unblock()),
        _ => {}
    }
}

/// Whether the lab can be built here. Asks a child process, so that the caller stays as it is; the answer is kept.
///
/// # Errors
/// [`Unavailable`] names the setting that forbids it.
pub fn available() -> Result<(), Unavailable> {
    static ANSWER: OnceLock<Result<(), Unavailable>> = OnceLock::new();
    if inside() {
        return Ok(());
    }
    // Without `init` in `main` the probe would run the whole program again.
    if !INITIALIZED.load(Ordering::SeqCst) {
        return Err(Unavailable::new("this program's main does not call lab::init", "call it as the first statement"));
    }
    ANSWER.get_or_init(probe).clone()
}

/// Puts this program into namespaces of its own and returns there. Must be called while the process has one thread.
///
/// The outer process does not return: it waits for the inner one and exits with its code (128 + n if signal n ended
/// it).
///
/// # Errors
/// [`Unavailable`], in the outer process, which is then unchanged: a child process has tried the way before.
pub fn enter(options: Options) -> Result<Entered, Unavailable> {
    init();
    if inside() {
        return Ok(Entered { host_listener: received_listener() });
    }
    available()?;
    if threads() > 1 {
        return Err(Unavailable::new("the process has started threads already", "call lab::enter earlier in main"));
    }
    let listener = options.host_listener.map(listen).transpose()?;
    let child = signals_blocked(|| {
        create_namespaces().map_err(|failure| diagnose(failure, &Settings::read()))?;
        let mut init = this_program("init");
        init.args(own_arguments()).env(PARENT, fs::read_link("/proc/self").unwrap_or_default());
        if let Some(listener) = listener {
            init.stdin(Stdio::from(OwnedFd::from(listener))).env(LISTENER, "1");
        }
        init.spawn().map_err(|error| Unavailable::new(format!("this program cannot run itself: {error}"), "check it"))
    })?;
    std::process::exit(supervise(Pid::from_raw(child.id() as i32)));
}

/// This program once more, as `stage`.
pub(crate) fn this_program(stage: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env(STAGE, stage);
    if let Some(name) = env::args_os().next() {
        command.arg0(name);
    }
    command
}

fn inside() -> bool {
    env::var(STAGE).is_ok_and(|stage| stage == "inside")
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

fn listen(address: SocketAddr) -> Result<TcpListener, Unavailable> {
    TcpListener::bind(address)
        .map_err(|error| Unavailable::new(format!("cannot listen on {address}: {error}"), "choose another address"))
}

fn received_listener() -> Option<TcpListener> {
    env::var_os(LISTENER)?;
    let listener = io::stdin().as_fd().try_clone_to_owned().ok()?;
    close_stdin();
    Some(TcpListener::from(listener))
}

/// Puts nothing in the place of standard input.
pub(crate) fn close_stdin() {
    if let Ok(null) = fs::File::open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(null);
    }
}

/// Moves this process (its children, for the PID namespace) into new namespaces, as uid 0 of the new user namespace.
fn create_namespaces() -> Result<(), Failure> {
    let failed = |step| move |errno| Failure { step, errno };
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(failed(Step::User))?;
    map_ids(uid.as_raw(), gid.as_raw(), 0).map_err(failed(Step::Map))?;
    let rest = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(rest).map_err(failed(Step::Namespaces))
}

/// Maps the outer ids `uid` and `gid` to `inner`, alone: all that user_namespaces(7) lets an unprivileged process do.
pub(crate) fn map_ids(uid: u32, gid: u32, inner: u32) -> Result<(), Errno> {
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("{inner} {uid} 1"))?;
    write("gid_map", format!("{inner} {gid} 1"))
}

fn probe() -> Result<(), Unavailable> {
    let output = this_program("probe").stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = output.map_err(|error| {
        Unavailable::new(format!("this program cannot run itself: {error}"), "mount /proc, make the program executable")
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.trim().parse::<Failure>() {
        Ok(failure) => Err(diagnose(failure, &Settings::read())),
        Err(()) if output.status.success() && text.trim() == "ok" => Ok(()),
        Err(()) => Err(Unavailable::new(
            format!("the probe ended without an answer ({})", output.status),
            "look at the kernel's log (`dmesg`) for a security module's refusal",
        )),
    }
}

/// The stage `probe`: walks the whole way in a process that then ends.
fn answer_probe() -> i32 {
    let walk = || {
        create_namespaces()?;
        pid1::mount_private_files().map_err(|errno| Failure { step: Step::Mount, errno })?;
        netlink::probe().map_err(|error| Failure {
            step: Step::Links,
            errno: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
        })
    };
    let answer = match walk() {
        Ok(()) => "ok".to_owned(),
        Err(failure) => failure.to_string(),
    };
    let _ = writeln!(io::stdout(), "{answer}");
    0
}

/// What a supervising process passes on, and SIGCHLD, which wakes it.
pub(crate) fn supervised_signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGCHLD].into_iter().collect()
}

/// Runs `start` with the supervised signals held back, so that none is lost before [`supervise`] reads them. They stay
/// blocked on success; on an error the mask is as before.
fn signals_blocked<T, E>(start: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let before = SigSet::thread_get_mask();
    let _ = supervised_signals().thread_block();
    start().inspect_err(|_| {
        if let Ok(before) = before {
            let _ = before.thread_set_mask();
        }
    })
}

/// Waits for `child`, reaping every other child on the way, and passes signals on to it. The supervised signals must be
/// blocked. Returns the exit code.
pub(crate) fn supervise(child: Pid) -> i32 {
    let Ok(signals) = SignalFd::new(&supervised_signals()) else { return 1 };
    loop {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == child => return code,
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return 128 + signal as i32,
                Ok(WaitStatus::StillAlive) => break,
                Err(Errno::ECHILD) => return 1,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        let Ok(Some(info)) = signals.read_signal() else { continue };
        // A terminal's ^C goes to the whole process group: the child has had it already.
        let from_terminal = info.ssi_code == nix::libc::SI_KERNEL;
        if let Ok(signal) = Signal::try_from(info.ssi_signo as i32)
            && signal != Signal::SIGCHLD
            && !from_terminal
        {
            let _ = kill(child, signal);
        }
    }
}

/// Arguments for the next stage: the same as ours.
pub(crate) fn own_arguments() -> impl Iterator<Item = OsString> {
    env::args_os().skip(1)
}
