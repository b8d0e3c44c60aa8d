//! Pods as Linux network namespaces inside one user namespace: no root, no external program, nothing left behind.
//!
//! # The two steps
//! 1. `main` calls [`init`] as its very first statement, and [`enter`] before it starts a thread. [`enter`] puts the
//!    process into namespaces of its own (user, network, mount, PID, IPC) by running the same program once more
//!    inside them, with the same arguments; the outer process only waits and passes signals on.
//! 2. Inside, [`Lab::new`] makes a switch, [`Lab::pod`] makes pods on it; [`Pod::spawn`] runs programs and
//!    [`Pod::run`] runs async code in a pod.
//!
//! ```no_run
//! use weft_loadtests::lab::{self, Lab, PodSpec, Program};
//!
//! fn main() -> anyhow::Result<()> {
//!     lab::init();
//!     lab::enter(lab::Options::default())?;
//!     let lab = Lab::new("shop")?;
//!     let orders = lab.pod(PodSpec::new("orders"))?;
//!     let inventory = lab.pod(PodSpec::new("inventory"))?;
//!     let listener = inventory.listen(8080)?;
//!     let address = inventory.address(8080);
//!     orders.run(move || async move { tokio::net::TcpStream::connect(address).await })?;
//!     drop(listener);
//!     orders.spawn(Program::new("hostname"))?.wait(std::time::Duration::from_secs(5))?;
//!     Ok(())
//! }
//! ```
//!
//! # The processes
//! ```text
//! outer process            waits, passes SIGINT, SIGTERM, SIGHUP and SIGQUIT on, exits with the same code
//! └─ init (PID 1)          dies with the outer process (PR_SET_PDEATHSIG); mounts; reaps orphans
//!    └─ the program again  `enter` returns here, with ordinary signal behaviour
//!       └─ what pods spawn
//! ```
//! When PID 1 of a PID namespace ends, the kernel ends every process of that namespace; the network namespaces, links,
//! rules and mounts go with the last process. So nothing remains after `exit`, after a panic, nor after `kill -9` of
//! any of these processes. All files are in a tmpfs of the mount namespace.
//!
//! # The network
//! Each lab has a switch: a network namespace with a bridge. Each pod has a network namespace with `lo` and `eth0`,
//! a veth pair to the bridge. The default routes are on-link: whatever address a pod asks for, the pod of the lab that
//! has this address answers (ARP, neighbour discovery); there is no router, so no sysctl needs to be written. That
//! gives service addresses and "outside" hosts without further set-up. Packets to an address that nobody has fail with
//! "no route to host" after about 3 s.
//!
//! # Users
//! One user id is mapped: the caller's own becomes 0. Programs in pods are uid 0 with all capabilities over the pods'
//! networks, unless [`Program::uid`] asks for another id: then they run in a second user namespace, without any
//! capability over the network. To the packet filter both look like uid 0, because the network namespace belongs to
//! the first user namespace: rules must tell programs apart by socket mark, not by user.
//!
//! # What one can do with it
//! | wish | how |
//! |---|---|
//! | a server in a pod, surely listening | [`Pod::listen`], then [`Pod::start`] with one of [`crate::apps`] |
//! | a client in a pod | [`Pod::run`]: panics and results reach the caller |
//! | a program in a pod | [`Pod::spawn`] with a [`Program`]; [`Program::this`] is the program that is running now |
//! | wait until it is ready | [`Process::wait_for_line`] |
//! | names, service addresses, outside hosts | [`Lab::hosts`], [`PodSpec::address`], [`Pod::add_address`] |
//! | what a kubelet on the node would do | [`Lab::switch`], which is a pod with the node's addresses |
//! | a partition | [`Pod::cut`], [`Pod::heal`] |
//! | proof that something is or is not on the wire | [`Lab::capture`], then [`Frames::contains`] or [`Frames::streams`] |
//! | a browser on the host that sees something of the lab | [`Options::host_listener`] |
//! | load | [`crate::load`], within [`Pod::run`] |
//! | tests that are skipped where the lab is not to be had | [`testing::main`] |
//!
//! # Limits
//! No cgroups: CPU and memory of pods are not limited. Delay cannot be injected by this module (it needs netem).

mod capture;
mod diagnose;
mod enter;
mod frames;
mod launch;
mod namespace;
mod netlink;
mod pid1;
mod process;
mod program;
mod task;
pub mod testing;
mod topology;

pub use capture::{Capture, packet_socket};
pub use diagnose::Unavailable;
pub(crate) use enter::STAGE;
pub use enter::{Entered, Options, available, enter, init};
pub use frames::{Frame, Frames, Segment, Stream};
pub use nix::sys::signal::Signal;
pub use process::Process;
pub use program::{Output, Program};
pub use task::Task;
pub use topology::{Lab, Pod, PodSpec};

use std::io;

/// An operation of the lab failed: what was tried, and the system's reason.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {cause}")]
pub struct Error {
    action: String,
    #[source]
    cause: io::Error,
}

impl Error {
    fn new(action: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        Self { action: action.into(), cause: cause.into() }
    }

    /// The system's reason.
    pub fn kind(&self) -> io::ErrorKind {
        self.cause.kind()
    }
}

/// What the lab's operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
