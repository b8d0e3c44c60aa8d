//! The stage `init`: PID 1 of the lab.
//!
//! Promises: dies with the outer process; gives the lab its private files; reaps orphans; ends with the code of the
//! program, and all processes of the lab end with it. Must never touch a file outside the mounts it made.

use super::enter::{LISTENER, PARENT, STAGE, close_stdin, own_arguments, supervise, supervised_signals, this_program};
use super::netlink;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Where the lab's own files are, below one of [`MOUNT_POINTS`].
pub(crate) const DIRECTORY: &str = "WEFT_LAB_DIRECTORY";

/// Directories whose content the lab can do without; the first that exists becomes its tmpfs.
const MOUNT_POINTS: [&str; 4] = ["/run", "/mnt", "/media", "/srv"];

pub(crate) fn run() -> i32 {
    let _ = supervised_signals().thread_block();
    if set_pdeathsig(Signal::SIGKILL).is_err() || !parent_lives() {
        return 1;
    }
    let directory = match mount_private_files() {
        Ok(directory) => directory,
        Err(errno) => return failed("mount the lab's files", &errno),
    };
    mount_optional();
    if let Err(error) = netlink::loopback_up() {
        return failed("start the loopback interface", &error);
    }
    let program = this_program("inside").args(own_arguments()).env_remove(PARENT).env(DIRECTORY, directory).spawn();
    match program {
        Ok(child) => {
            // It may be the host's listener, which is the program's to close.
            close_stdin();
            supervise(Pid::from_raw(child.id() as i32))
        }
        Err(error) => failed("run this program inside the lab", &error),
    }
}

fn failed(action: &str, error: &dyn std::fmt::Display) -> i32 {
    eprintln!("lab: cannot {action}: {error}");
    1
}

/// The outer process may have died before PDEATHSIG was set. From inside a PID namespace its pid reads as 0, but the
/// `/proc` that is still mounted here belongs to the outer one.
fn parent_lives() -> bool {
    let Ok(expected) = env::var(PARENT) else { return true };
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return true };
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent.is_none_or(|pid| pid.trim() == expected)
}

/// Cuts this mount namespace off from others and mounts the tmpfs of the lab's files. Returns their directory.
pub(crate) fn mount_private_files() -> Result<PathBuf, Errno> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let point = MOUNT_POINTS.iter().map(Path::new).find(|path| path.is_dir()).ok_or(Errno::ENOENT)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("weft-lab"), point, Some("tmpfs"), flags, Some("mode=0755"))?;
    let directory = point.join("weft-lab");
    fs::create_dir(&directory).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    Ok(directory)
}

/// A tmpfs of one lab's own, so that a lab which fills its disk fills no other's.
pub(crate) fn mount_files(directory: &Path) -> Result<(), Errno> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("weft-lab"), directory, Some("tmpfs"), flags, Some("mode=0755,size=1g"))
}

/// Takes it away, once nobody uses it.
pub(crate) fn unmount_files(directory: &Path) {
    let _ = umount2(directory, MntFlags::MNT_DETACH);
}

/// A fresh `/proc` shows the lab's own processes (refused where a container masks parts of the old one); a fresh
/// `/dev/shm` keeps POSIX shared memory from being left behind. The lab works without either.
fn mount_optional() {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let _ = mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>);
    if Path::new("/dev/shm").is_dir() {
        let _ = mount(Some("weft-lab"), "/dev/shm", Some("tmpfs"), flags, Some("mode=1777"));
    }
}

/// Whether `/proc` shows the processes of this PID namespace under the pids that they have here.
pub(crate) fn proc_is_ours() -> bool {
    fs::read_link("/proc/self").is_ok_and(|pid| pid == Path::new(&std::process::id().to_string()))
}

/// Removes the lab's marks from a command that shall not know of it.
pub(crate) fn without_marks(command: &mut std::process::Command) {
    for mark in [STAGE, DIRECTORY, LISTENER] {
        command.env_remove(mark);
    }
}
