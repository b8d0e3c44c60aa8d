//! `weft crds`: the CustomResourceDefinitions of Weft's kinds, as this version reads them.
use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

/// Print the CustomResourceDefinitions of Weft's kinds: `weft crds | kubectl apply --server-side -f -`.
#[derive(Args)]
pub(crate) struct CrdsArgs {
    /// Write them into this directory instead, one file each.
    #[arg(long)]
    directory: Option<PathBuf>,
}

/// Prints or writes them.
pub(crate) fn main(args: &CrdsArgs) -> anyhow::Result<()> {
    for crd in weft_api::resource::crds() {
        let yaml = serde_saphyr::to_string(&crd)?;
        match &args.directory {
            None => print!("---\n{yaml}"),
            Some(directory) => {
                let plural = crd["spec"]["names"]["plural"].as_str().context("a definition without plural")?;
                let path = directory.join(format!("{plural}.yaml"));
                fs::write(&path, yaml).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
    }
    Ok(())
}
