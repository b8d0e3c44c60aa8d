//! The stage `launch`: between a pod and a program that needs what must be set in its own process: another user id, or
//! a limit of open files.
//!
//! Promises: the program gets the environment without the lab's marks. Ends with code 127 if it cannot be run.

use super::enter::map_ids;
use super::pid1::without_marks;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A [`Launch`] as JSON.
pub(crate) const LAUNCH: &str = "WEFT_LAB_LAUNCH";

/// What to set before the program runs.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) uid: Option<u32>,
    pub(crate) open_files: Option<u64>,
}

impl Launch {
    pub(crate) fn is_needed(&self) -> bool {
        self.uid.is_some() || self.open_files.is_some()
    }
}

pub(crate) fn run() -> i32 {
    let mut arguments = env::args_os().skip(1);
    let program = arguments.next().unwrap_or_default();
    let error = match prepare() {
        Ok(()) => {
            let mut command = Command::new(&program);
            without_marks(&mut command);
            command.args(arguments).env_remove(LAUNCH).exec().to_string()
        }
        Err(error) => error,
    };
    eprintln!("lab: cannot run {}: {error}", program.display());
    127
}

fn prepare() -> Result<(), String> {
    let text = env::var(LAUNCH).map_err(|error| error.to_string())?;
    let launch: Launch = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    if let Some(wanted) = launch.open_files {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| errno.to_string())?;
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard)
            .map_err(|errno| format!("open files: {wanted}: {errno}"))?;
    }
    if let Some(uid) = launch.uid {
        let (own_uid, own_gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| format!("user namespace: {errno}"))?;
        map_ids(own_uid.as_raw(), own_gid.as_raw(), uid).map_err(|errno| format!("uid {uid}: {errno}"))?;
    }
    Ok(())
}
