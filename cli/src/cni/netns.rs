//! Into the pod's network namespace, and what is done there: the rules of `weft-proxy init`.
//!
//! There is no way back out: the caller is a process that ends after this. Must never write rules into the network
//! namespace it came from, which is the node's.
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use weft_proxy::redirect;

use super::protocol::{Failure, code};
use super::wire::Redirect;

/// Puts the rules in force and reads back that they are.
pub(super) fn redirect(netns: &Path, redirect: &Redirect) -> Result<(), Failure> {
    let args = redirect.init_args().map_err(|fault| Failure::new(code::INVALID_POD, fault))?;
    enter(netns)?;
    redirect::run_init(&args).map_err(|fault| Failure::new(code::REDIRECT, fault.to_string()))?;
    Ok(())
}

/// Whether the rules are in force.
pub(super) fn check(netns: &Path) -> Result<(), Failure> {
    enter(netns)?;
    match redirect::counters() {
        Ok(rules) if rules.is_empty() => Err(Failure::new(
            code::REDIRECT,
            "the pod's redirect rules are gone: its connections bypass the sidecar; delete the pod",
        )),
        Ok(_) => Ok(()),
        Err(fault) => Err(Failure::new(code::REDIRECT, fault.to_string())),
    }
}

/// Moves this process, which has one thread.
fn enter(netns: &Path) -> Result<(), Failure> {
    let failed = |fault: &dyn std::fmt::Display| {
        Failure::new(code::IO, format!("the network namespace {} cannot be entered: {fault}", netns.display()))
    };
    let target = File::open(netns).map_err(|fault| failed(&fault))?;
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let there = target.metadata().map(identity).map_err(|fault| failed(&fault))?;
    let here = fs::metadata("/proc/self/ns/net").map(identity).map_err(|fault| failed(&fault))?;
    if here == there {
        return Err(failed(&"it is the node's own, whose connections no pod may redirect"));
    }
    setns(target, CloneFlags::CLONE_NEWNET).map_err(|fault| failed(&fault))
}
