//! Labs and pods: the switch, what is plugged into it, and what runs there.

use super::namespace::{Files, Namespace, lock};
use super::process::{self, Process, Shared};
use super::task::{self, Task};
use super::{Capture, Error, Program, Result, netlink, pid1};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use std::{env, fs, io, thread};
use tokio::sync::watch;

/// A network of pods around a switch. Any number can be made in one process, also at the same time; they do not see
/// each other and may use the same names and addresses. Dropping it ends all that runs in it.
#[derive(Debug)]
pub struct Lab {
    directory: PathBuf,
    files: Files,
    switch: Pod,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pods: Vec<Pod>,
    names: BTreeMap<String, Vec<IpAddr>>,
    captures: Vec<Weak<AtomicBool>>,
}

/// What a pod shall be.
#[derive(Debug, Clone)]
pub struct PodSpec {
    name: String,
    addresses: Vec<IpAddr>,
}

impl PodSpec {
    /// A pod with this name, which is its host name and known to all pods of the lab. Unless [`PodSpec::address`] says
    /// otherwise it gets one address of each family, from 10.77.0.0/16 and fd77::/64.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), addresses: Vec::new() }
    }

    /// Gives it this address, alone or among others; any address is possible, and reachable from the whole lab.
    pub fn address(mut self, address: impl Into<IpAddr>) -> Self {
        self.addresses.push(address.into());
        self
    }
}

impl Lab {
    /// Makes a lab with a switch and no pod. `name` (letters, digits, `-`) appears in thread and file names.
    ///
    /// # Errors
    /// The process is not inside (see [`super::enter`]), or the kernel is out of namespaces.
    pub fn new(name: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        check_name(name)?;
        let parent = env::var_os(pid1::DIRECTORY).ok_or_else(|| {
            Error::new("make a lab", io::Error::other("the process is not inside: main must call lab::enter first"))
        })?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = Path::new(&parent).join(format!("{name}-{}-{number}", std::process::id()));
        let files = Files { hosts: directory.join("hosts"), resolv_conf: directory.join("resolv.conf") };
        fs::create_dir(&directory)
            .and_then(|()| pid1::mount_files(&directory).map_err(io::Error::from))
            .and_then(|()| fs::create_dir(directory.join("switch")))
            .and_then(|()| fs::write(&files.hosts, hosts_text(&State::default())))
            .and_then(|()| fs::write(&files.resolv_conf, "# names are in /etc/hosts\n"))
            .map_err(|error| Error::new(format!("write in {}", directory.display()), error))?;
        let namespace = Namespace::create("switch", files.clone())?;
        namespace.call("make the bridge", netlink::make_switch)?;
        let addresses = vec![netlink::nth_v4(1).into(), netlink::nth_v6(1).into()];
        let switch = Pod::new("switch", namespace, addresses, String::new(), None, directory.join("switch"));
        Ok(Self { directory, files, switch, state: Mutex::default() })
    }

    /// Adds a pod.
    ///
    /// # Errors
    /// The name is taken or not a host name, or an address is not assignable.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        check_name(&spec.name)?;
        let mut state = lock(&self.state);
        if state.pods.iter().any(|pod| pod.inner.name == spec.name) {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "the lab has a pod of this name; choose another");
            return Err(Error::new(format!("make pod {}", spec.name), error));
        }
        let number = u16::try_from(state.pods.len() + 2)
            .map_err(|_| Error::new("make a pod", io::Error::other("a lab has at most 65,533 pods")))?;
        let addresses = match spec.addresses {
            none if none.is_empty() => vec![netlink::nth_v4(number).into(), netlink::nth_v6(number).into()],
            some => some,
        };
        let directory = self.directory.join(format!("pod-{}", spec.name));
        fs::create_dir(&directory).map_err(|error| Error::new(format!("make {}", directory.display()), error))?;
        let namespace = Namespace::create(&spec.name, self.files.clone())?;
        let (port, pod) = (format!("port{number}"), namespace.net().as_raw_fd());
        let link = port.clone();
        self.switch.inner.namespace.call("plug in a pod", move || netlink::plug(&link, pod))?;
        let own = addresses.clone();
        namespace.call("set addresses and routes", move || netlink::make_pod(&own))?;
        let switch = Arc::downgrade(&self.switch.inner);
        let pod = Pod::new(&spec.name, namespace, addresses, port, Some(switch), directory);
        state.pods.push(pod.clone());
        self.write_hosts(&state)?;
        Ok(pod)
    }

    /// Makes names known to all pods, in `/etc/hosts`. A name given here hides a pod of the same name; given again, it
    /// has the new addresses only. Several entries of one call with the same name are alternatives.
    ///
    /// # Errors
    /// A name is not a host name.
    pub fn hosts<N: AsRef<str>>(&self, names: impl IntoIterator<Item = (N, IpAddr)>) -> Result<()> {
        let mut given: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for (name, address) in names {
            check_name(name.as_ref())?;
            given.entry(name.as_ref().to_owned()).or_default().push(address);
        }
        let mut state = lock(&self.state);
        state.names.extend(given);
        self.write_hosts(&state)
    }

    /// The switch, as a pod with the addresses 10.77.0.1 and fd77::1: it stands for the node, from which a kubelet
    /// probes.
    pub fn switch(&self) -> &Pod {
        &self.switch
    }

    /// A directory for files, gone with the lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Records every frame that crosses the switch from now on.
    ///
    /// # Errors
    /// The packet socket cannot be made.
    pub fn capture(&self) -> Result<Capture> {
        let capture = Capture::start(&self.switch.inner.namespace)?;
        lock(&self.state).captures.push(Arc::downgrade(capture.stopping()));
        Ok(capture)
    }

    /// The file is written in place: the pods have it bound over their own.
    fn write_hosts(&self, state: &State) -> Result<()> {
        fs::write(&self.files.hosts, hosts_text(state)).map_err(|error| Error::new("write the hosts file", error))
    }
}

fn hosts_text(state: &State) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
    let given = state.names.iter();
    let pods = state.pods.iter().map(|pod| (&pod.inner.name, &pod.inner.addresses));
    for (name, addresses) in given.chain(pods.filter(|(name, _)| !state.names.contains_key(*name))) {
        for address in addresses {
            let _ = writeln!(text, "{address} {name}");
        }
    }
    text
}

/// RFC 1123 section 2.1, which also keeps names from leaving their directory or their line.
fn check_name(name: &str) -> Result<()> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
    };
    if name.len() <= 253 && name.split('.').all(label) {
        return Ok(());
    }
    let text = "not a host name: use letters, digits and '-', at most 63 between dots";
    Err(Error::new(format!("name something {name:?}"), io::Error::new(io::ErrorKind::InvalidInput, text)))
}

impl Drop for Lab {
    fn drop(&mut self) {
        let State { mut pods, captures, .. } = std::mem::take(&mut *lock(&self.state));
        captures.iter().filter_map(Weak::upgrade).for_each(|stop| stop.store(true, Ordering::SeqCst));
        pods.push(self.switch.clone());
        pods.iter().for_each(Pod::stop_running);
        kill_stragglers(&pods.iter().map(|pod| pod.inner.namespace.inode).collect::<Vec<_>>());
        pods.iter().for_each(|pod| pod.inner.namespace.end());
        pid1::unmount_files(&self.directory);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Kills what was started by the programs in pods and left their process groups. Without a `/proc` of our own they
/// live until the process that entered ends.
fn kill_stragglers(namespaces: &[u64]) {
    if !pid1::proc_is_ours() {
        return;
    }
    let own = std::process::id();
    for _ in 0..100 {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let stragglers = pids.filter(|pid| {
            let net = fs::metadata(format!("/proc/{pid}/ns/net"));
            *pid != own && net.is_ok_and(|net| namespaces.contains(&net.ino()))
        });
        let killed = stragglers.filter(|pid| kill(Pid::from_raw(*pid as i32), Signal::SIGKILL).is_ok()).count();
        if killed == 0 {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A pod: a network namespace with addresses, names and processes. A handle: clones are the same pod. Once its lab has
/// been dropped, its operations fail.
#[derive(Debug, Clone)]
pub struct Pod {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    namespace: Namespace,
    addresses: Vec<IpAddr>,
    /// The switch's end of the link.
    port: String,
    switch: Option<Weak<Inner>>,
    directory: PathBuf,
    processes: Mutex<Vec<Weak<Shared>>>,
    /// Taken to end all tasks.
    running: Mutex<Option<watch::Sender<()>>>,
}

impl Pod {
    fn new(
        name: &str,
        namespace: Namespace,
        addresses: Vec<IpAddr>,
        port: String,
        switch: Option<Weak<Inner>>,
        directory: PathBuf,
    ) -> Self {
        let running = Mutex::new(Some(watch::channel(()).0));
        let (name, processes) = (name.to_owned(), Mutex::default());
        Self { inner: Arc::new(Inner { name, namespace, addresses, port, switch, directory, processes, running }) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its addresses, in the order in which they were given.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.inner.addresses
    }

    /// Its first address, with `port`.
    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.inner.addresses[0], port)
    }

    /// Its first IPv4 address.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.inner.addresses.iter().find_map(|address| if let IpAddr::V4(v4) = address { Some(*v4) } else { None })
    }

    /// Its first IPv6 address.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.inner.addresses.iter().find_map(|address| if let IpAddr::V6(v6) = address { Some(*v6) } else { None })
    }

    /// A directory for its files, the `TMPDIR` of its programs; gone with the lab.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// Gives it one more address.
    ///
    /// # Errors
    /// The pod has the address already, or it is not assignable.
    pub fn add_address(&self, address: impl Into<IpAddr>) -> Result<()> {
        let link = if self.inner.switch.is_some() { netlink::POD_LINK } else { netlink::BRIDGE };
        let address = address.into();
        self.inner.namespace.call(&format!("add the address {address}"), move || netlink::add_address(link, address))
    }

    /// Starts a program in the pod.
    ///
    /// # Errors
    /// It cannot be run. Where [`Program::uid`] or [`Program::open_files`] is set, that shows as exit code 127.
    pub fn spawn(&self, program: Program) -> Result<Process> {
        let process = process::spawn(&self.inner.namespace, &program, &self.inner.directory)?;
        let mut processes = lock(&self.inner.processes);
        processes.retain(|process| process.strong_count() > 0);
        processes.push(Arc::downgrade(process.shared()));
        Ok(process)
    }

    /// Runs async code in the pod, on a thread with a runtime of its own (where `tokio::task::spawn_local` works), and
    /// waits for the result. Sockets and name lookups are the pod's. Code that blocks for long without an `.await`
    /// holds up the end of the lab.
    ///
    /// # Errors
    /// The lab was dropped meanwhile.
    ///
    /// # Panics
    /// If the code panics, with the same panic.
    pub fn run<T, F>(&self, make: impl FnOnce() -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.start(make)?.join()
    }

    /// As [`Pod::run`], in the background.
    ///
    /// # Errors
    /// The lab was dropped.
    pub fn start<T, F>(&self, make: impl FnOnce() -> F + Send + 'static) -> Result<Task<T>>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let ended = lock(&self.inner.running).as_ref().map(watch::Sender::subscribe);
        let ended = ended.ok_or_else(|| {
            Error::new(format!("run in {}", self.inner.name), io::Error::other("the lab has been dropped"))
        })?;
        task::start(&self.inner.namespace, ended, make)
    }

    /// A non-blocking TCP socket that listens in the pod on `port` of all addresses of both families; 0 chooses a
    /// port. It stays the pod's wherever it is used: `tokio::net::TcpListener::from_std`.
    ///
    /// # Errors
    /// The port is taken.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        self.inner.namespace.call(&format!("listen on port {port}"), move || {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
    }

    /// A non-blocking UDP socket of the pod, as [`Pod::listen`].
    ///
    /// # Errors
    /// The port is taken.
    pub fn udp(&self, port: u16) -> Result<UdpSocket> {
        self.inner.namespace.call(&format!("bind UDP port {port}"), move || {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    }

    /// Takes the pod off the switch: nothing reaches it and nothing leaves it, silently, as in a partition.
    ///
    /// # Errors
    /// The lab was dropped, or this is the switch.
    pub fn cut(&self) -> Result<()> {
        self.attach(false)
    }

    /// Puts the pod back on the switch.
    ///
    /// # Errors
    /// The lab was dropped, or this is the switch.
    pub fn heal(&self) -> Result<()> {
        self.attach(true)
    }

    fn attach(&self, attached: bool) -> Result<()> {
        let switch = self.inner.switch.as_ref().and_then(Weak::upgrade);
        let switch = switch.ok_or_else(|| {
            Error::new(format!("cut or heal {}", self.inner.name), io::Error::other("it is not on a switch"))
        })?;
        let port = self.inner.port.clone();
        switch.namespace.call("cut or heal", move || netlink::attach(&port, attached))
    }

    /// Ends its programs and tells its tasks to end.
    fn stop_running(&self) {
        lock(&self.inner.running).take();
        let processes: Vec<_> = lock(&self.inner.processes).drain(..).filter_map(|process| process.upgrade()).collect();
        processes.iter().for_each(|process| process.kill());
    }
}
