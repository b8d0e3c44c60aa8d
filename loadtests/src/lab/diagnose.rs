//! Why namespaces cannot be had here, in words that name the setting and the remedy.
//!
//! The probe reports the step that failed and the kernel's error number; what the kernel does not say (which of
//! several switches forbade it) is read from `/proc`.

use nix::errno::Errno;
use std::fmt;
use std::fs;
use std::str::FromStr;

/// The lab cannot be built on this machine: why, and what would allow it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {remedy}")]
pub struct Unavailable {
    /// What forbids it, with the name of the setting where one is known.
    pub reason: String,
    /// What to change.
    pub remedy: String,
}

impl Unavailable {
    pub(crate) fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { reason: reason.into(), remedy: remedy.into() }
    }
}

/// The steps into the namespaces, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    User,
    Map,
    Namespaces,
    Mount,
    Links,
}

const STEPS: [(Step, &str); 5] = [
    (Step::User, "user"),
    (Step::Map, "map"),
    (Step::Namespaces, "namespaces"),
    (Step::Mount, "mount"),
    (Step::Links, "links"),
];

/// A step that failed, in a form that travels as one line of text (`user 1`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) errno: Errno,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = STEPS.iter().find(|(step, _)| *step == self.step).map_or("?", |(_, name)| name);
        write!(f, "{name} {}", self.errno as i32)
    }
}

impl FromStr for Failure {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (name, errno) = text.trim().split_once(' ').ok_or(())?;
        let (step, _) = STEPS.iter().find(|(_, known)| *known == name).ok_or(())?;
        Ok(Self { step: *step, errno: Errno::from_raw(errno.parse().map_err(|_| ())?) })
    }
}

/// The settings that decide; `None` where the kernel does not have the setting.
#[derive(Debug, Default, Clone)]
pub(crate) struct Settings {
    /// `kernel.unprivileged_userns_clone` (Debian's patch)
    userns_clone: Option<u64>,
    /// `user.max_user_namespaces`
    max_user: Option<u64>,
    /// `user.max_net_namespaces`
    max_net: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns` (Ubuntu 23.10 and later)
    apparmor_restrict: Option<u64>,
    /// The AppArmor profile of this process, if it is confined.
    apparmor_profile: Option<String>,
    /// A seccomp filter is attached to this process.
    seccomp: bool,
    root: bool,
}

impl Settings {
    pub(crate) fn read() -> Self {
        let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let profile = fs::read_to_string("/proc/self/attr/apparmor/current")
            .or_else(|_| fs::read_to_string("/proc/self/attr/current"))
            .ok()
            .map(|label| label.trim_matches(['\0', '\n', ' ']).to_owned())
            .filter(|label| label.ends_with(')') && !label.starts_with("unconfined"));
        Self {
            userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            max_user: number("/proc/sys/user/max_user_namespaces"),
            max_net: number("/proc/sys/user/max_net_namespaces"),
            apparmor_restrict: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            apparmor_profile: profile,
            seccomp: status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2")),
            root: nix::unistd::geteuid().is_root(),
        }
    }
}

/// Names the cause of a failed step.
pub(crate) fn diagnose(failure: Failure, settings: &Settings) -> Unavailable {
    let Failure { step, errno } = failure;
    let denied = matches!(errno, Errno::EPERM | Errno::EACCES);
    if denied && settings.userns_clone == Some(0) && !settings.root {
        return Unavailable::new(
            "unprivileged user namespaces are switched off (kernel.unprivileged_userns_clone=0)",
            "run `sysctl kernel.unprivileged_userns_clone=1` as root",
        );
    }
    if settings.max_user == Some(0) {
        return Unavailable::new(
            "user namespaces are switched off (user.max_user_namespaces=0)",
            "run `sysctl user.max_user_namespaces=15000` as root",
        );
    }
    if settings.max_net == Some(0) {
        return Unavailable::new(
            "network namespaces are switched off (user.max_net_namespaces=0)",
            "run `sysctl user.max_net_namespaces=15000` as root",
        );
    }
    if denied && settings.apparmor_restrict == Some(1) && !settings.root {
        return Unavailable::new(
            "AppArmor takes all capabilities from unprivileged user namespaces \
             (kernel.apparmor_restrict_unprivileged_userns=1)",
            "run `sysctl kernel.apparmor_restrict_unprivileged_userns=0` as root, or give this program an AppArmor \
             profile with the rule `userns,`",
        );
    }
    if denied && let Some(profile) = &settings.apparmor_profile {
        return Unavailable::new(
            format!("the AppArmor profile {profile} forbids it ({step:?}: {errno})"),
            "in a container: run it with `--security-opt apparmor=unconfined`",
        );
    }
    if denied && settings.seccomp && step != Step::Map {
        return Unavailable::new(
            format!("a seccomp filter forbids it, as container engines set by default ({step:?}: {errno})"),
            "in a container: run it with `--security-opt seccomp=unconfined`",
        );
    }
    match (step, errno) {
        (Step::User, Errno::EINVAL) => Unavailable::new(
            "this kernel has no user namespaces, or the process has more than one thread",
            "use a kernel with CONFIG_USER_NS, and call lab::enter before starting threads",
        ),
        (Step::User | Step::Namespaces, Errno::ENOSPC | Errno::EUSERS) => Unavailable::new(
            "the limit of namespaces is reached (user.max_*_namespaces, or 32 nested user namespaces)",
            "end programs that hold namespaces, or raise the limits in /proc/sys/user as root",
        ),
        (Step::User, Errno::EPERM) => Unavailable::new(
            "the kernel refuses user namespaces to this process (a chroot, an unmapped user id, or a security module)",
            "run it outside the chroot or container",
        ),
        (Step::Map, _) if settings.root => Unavailable::new(
            format!("root may not map its own user id here ({errno}): the capability CAP_SETFCAP is missing"),
            "run it as an ordinary user, or with CAP_SETFCAP",
        ),
        (Step::Mount, _) => Unavailable::new(
            format!("mounting inside a user namespace is refused ({errno})"),
            "run it outside the container, or allow mounts there (AppArmor, SELinux)",
        ),
        (Step::Links, Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => Unavailable::new(
            format!("this kernel cannot make bridges or veth pairs ({errno})"),
            "load the modules as root: `modprobe -a bridge veth`",
        ),
        _ => Unavailable::new(
            format!("namespaces cannot be made ({step:?}: {errno})"),
            "look at the kernel's log (`dmesg`) for a security module's refusal",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_names_its_setting_and_remedy() {
        let none = Settings::default();
        let cases = [
            (Step::User, Errno::EPERM, Settings { userns_clone: Some(0), ..none.clone() }, "unprivileged_userns_clone"),
            (Step::User, Errno::ENOSPC, Settings { max_user: Some(0), ..none.clone() }, "max_user_namespaces=0"),
            (Step::Namespaces, Errno::ENOSPC, Settings { max_net: Some(0), ..none.clone() }, "max_net_namespaces=0"),
            (
                Step::Map,
                Errno::EPERM,
                Settings { apparmor_restrict: Some(1), seccomp: true, ..none.clone() },
                "apparmor_restrict_unprivileged_userns",
            ),
            (Step::User, Errno::EPERM, Settings { seccomp: true, ..none.clone() }, "seccomp=unconfined"),
            (
                Step::Mount,
                Errno::EACCES,
                Settings { apparmor_profile: Some("docker-default (enforce)".into()), ..none.clone() },
                "docker-default",
            ),
            (Step::User, Errno::EINVAL, none.clone(), "CONFIG_USER_NS"),
            (Step::Map, Errno::EPERM, Settings { root: true, ..none.clone() }, "CAP_SETFCAP"),
            (Step::Links, Errno::EOPNOTSUPP, none, "modprobe"),
        ];
        for (step, errno, settings, wanted) in cases {
            let text = diagnose(Failure { step, errno }, &settings).to_string();
            assert!(text.contains(wanted), "{step:?} {errno}: {text}");
        }
    }

    #[test]
    fn a_failure_survives_the_pipe() {
        let failure = Failure { step: Step::Mount, errno: Errno::EACCES };
        assert_eq!(failure.to_string().parse(), Ok(failure));
        assert_eq!("garbage".parse::<Failure>(), Err(()));
    }
}
