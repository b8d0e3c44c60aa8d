//! One network namespace and the thread that keeps it.
//!
//! The keeper is a thread that made network, mount and host name namespaces for itself. Threads and processes that it
//! starts are born into them, so that no code ever has to move between namespaces. They live as long as somebody is
//! in them or holds [`Namespace::net`].

use super::{Error, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

type Job = Box<dyn FnOnce() + Send>;

/// Files that replace those of the machine, for programs in this namespace.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) hosts: PathBuf,
    pub(crate) resolv_conf: PathBuf,
}

#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
    net: File,
    /// Identifies the network namespace, as in `/proc/PID/ns/net`.
    pub(crate) inode: u64,
    keeper: Mutex<Option<Keeper>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Keeper {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

impl Namespace {
    pub(crate) fn create(name: &str, files: Files) -> Result<Self> {
        let (ready, made) = channel();
        let (jobs, queue) = channel::<Job>();
        let hostname = name.to_owned();
        let thread = thread::Builder::new()
            .name(format!("keeper-{name}"))
            .spawn(move || {
                let net = make(&hostname, &files);
                let going = net.is_ok();
                if ready.send(net).is_ok() && going {
                    queue.into_iter().for_each(|job| job());
                }
            })
            .map_err(|error| Error::new("start a thread", error))?;
        let net = made.recv().unwrap_or_else(|_| Err(io::Error::other("its keeper ended")));
        let net = net.map_err(|error| Error::new(format!("make the namespaces of {name}"), error))?;
        let inode =
            net.metadata().map_err(|error| Error::new(format!("look at the namespace of {name}"), error))?.ino();
        Ok(Self {
            name: name.to_owned(),
            net,
            inode,
            keeper: Mutex::new(Some(Keeper { jobs, thread })),
            threads: Mutex::default(),
        })
    }

    /// The network namespace itself.
    pub(crate) fn net(&self) -> &File {
        &self.net
    }

    /// Runs `work` on the keeper. It must be short: the keeper does one thing at a time.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        action: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let failed = |error| Error::new(format!("{}: {action}", self.name), error);
        let ended = || failed(io::Error::new(io::ErrorKind::NotConnected, "the lab has ended"));
        let (reply, answer) = channel();
        let job: Job = Box::new(move || drop(reply.send(work())));
        let jobs = lock(&self.keeper).as_ref().map(|keeper| keeper.jobs.clone()).ok_or_else(ended)?;
        jobs.send(job).map_err(|_| ended())?;
        answer.recv().map_err(|_| ended())?.map_err(failed)
    }

    /// Starts a thread in this namespace; [`Namespace::end`] waits for it.
    pub(crate) fn thread(&self, duty: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let name = format!("{}-{duty}", self.name);
        let thread = self.call("start a thread", move || thread::Builder::new().name(name).spawn(work))?;
        let mut threads = lock(&self.threads);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    /// Ends the keeper and waits for all threads, which must have been told to end.
    pub(crate) fn end(&self) {
        let keeper = lock(&self.keeper).take();
        if let Some(Keeper { jobs, thread }) = keeper {
            drop(jobs);
            let _ = thread.join();
        }
        let own = thread::current().id();
        for thread in lock(&self.threads).drain(..).filter(|thread| thread.thread().id() != own) {
            let _ = thread.join();
        }
    }
}

/// Makes the namespaces of the calling thread; returns the network namespace.
fn make(name: &str, files: &Files) -> io::Result<File> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
    nix::unistd::sethostname(name)?;
    replace("/etc/hosts", &files.hosts)?;
    replace("/etc/resolv.conf", &files.resolv_conf)?;
    File::open("/proc/thread-self/ns/net")
}

/// Where the machine has no such file, programs do not look for it either.
fn replace(target: &str, file: &Path) -> io::Result<()> {
    if Path::new(target).exists() {
        mount(Some(file), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    Ok(())
}

/// Locks what no panic can leave half-changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
