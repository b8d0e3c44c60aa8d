//! What to run in a pod, and how.

use super::enter::STAGE;
use super::launch::{LAUNCH, Launch};
use super::pid1::without_marks;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fmt, fs, io};

/// Where standard output and standard error go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Output {
    /// Kept, at most 16 MiB of the latest: [`super::Process::wait_for_line`], [`super::Process::stdout`],
    /// [`super::Process::stderr`].
    #[default]
    Captured,
    /// Both appended to this file.
    File(PathBuf),
    /// Where those of the caller go.
    Inherited,
    /// Nowhere.
    Discarded,
}

/// What to run in a pod.
#[derive(Debug, Clone)]
pub struct Program {
    path: OsString,
    arguments: Vec<OsString>,
    /// Set, or removed where there is no value.
    environment: Vec<(OsString, Option<OsString>)>,
    clear_environment: bool,
    directory: Option<PathBuf>,
    uid: Option<u32>,
    open_files: Option<u64>,
    output: Output,
}

impl Program {
    /// The program at `path`, looked up in `PATH` if it has no slash.
    pub fn new(path: impl AsRef<OsStr>) -> Self {
        Self {
            path: path.as_ref().into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            clear_environment: false,
            directory: None,
            uid: None,
            open_files: None,
            output: Output::Captured,
        }
    }

    /// The program that is running now. It passes [`super::init`] and goes on as in an ordinary start.
    pub fn this() -> Self {
        Self::new("/proc/self/exe")
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().into());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().into()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().into(), Some(value.as_ref().into())));
        self
    }

    /// Removes an environment variable.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().into(), None));
        self
    }

    /// Starts from an empty environment instead of the caller's.
    pub fn clear_env(mut self) -> Self {
        self.clear_environment = true;
        self
    }

    /// Sets the working directory. The default is the caller's when the pod was made.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Runs as user and group `uid`, in a user namespace of its own: without capabilities (unless 0) and, whatever it
    /// does, without power over the pod's network. The files of the caller are its own. Some programs want an id that
    /// `/etc/passwd` names; 65534, `nobody`, is in most.
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Sets the soft limit of open files, at most to the hard limit.
    pub fn open_files(mut self, limit: u64) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Says where output goes.
    pub fn output(mut self, output: Output) -> Self {
        self.output = output;
        self
    }

    /// As the command that the pod's keeper runs, with `temporary` as the default of `TMPDIR`.
    pub(crate) fn command(&self, temporary: &Path) -> io::Result<Command> {
        let launch = Launch { uid: self.uid, open_files: self.open_files };
        let mut command = Command::new(&self.path);
        if launch.is_needed() {
            command = Command::new("/proc/self/exe");
            command.arg(&self.path);
        }
        if self.clear_environment {
            command.env_clear();
        }
        without_marks(&mut command);
        if launch.is_needed() {
            command.env(STAGE, "launch").env(LAUNCH, serde_json::to_string(&launch)?);
        }
        command.args(&self.arguments).env("TMPDIR", temporary);
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command.stdin(Stdio::null());
        let (out, err) = match &self.output {
            Output::Captured => (Stdio::piped(), Stdio::piped()),
            Output::Inherited => (Stdio::inherit(), Stdio::inherit()),
            Output::Discarded => (Stdio::null(), Stdio::null()),
            Output::File(path) => {
                let file = fs::File::options().create(true).append(true).open(path)?;
                (file.try_clone()?.into(), file.into())
            }
        };
        // A group of its own: so that all of it can be killed, and a terminal's ^C is the caller's to handle.
        command.stdout(out).stderr(err).process_group(0);
        Ok(command)
    }
}

/// The path.
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}
