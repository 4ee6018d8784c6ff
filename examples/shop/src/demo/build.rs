//! The programs of the mesh: built like this one, or found where `--bin-dir` says.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, bail};
use tokio::process::Command;

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) control_plane: PathBuf,
    pub(crate) heddle: PathBuf,
    pub(crate) shop: PathBuf,
}

impl Programs {
    /// Builds them with the profile that this program was built with, next to it.
    pub(crate) async fn build() -> anyhow::Result<Self> {
        let shop = std::env::current_exe().context("cannot tell where this program is")?;
        let folder = shop.parent().context("this program lies in no folder")?;
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("no workspace")?;
        if !workspace.join("Cargo.toml").is_file() {
            bail!("the sources in {} are gone; say with --bin-dir where the programs are", workspace.display());
        }
        // target/<profile>/shop
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        let target = folder.parent().context("this program does not lie in a target folder")?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--profile", profile, "--bins"])
            .args(["-p", "heddle-control-plane", "-p", "heddle-proxy", "-p", "heddle-cli"])
            .arg("--target-dir")
            .arg(target)
            .current_dir(workspace)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .status()
            .await
            .context("cannot run cargo")?;
        if !status.success() {
            bail!("cargo build failed ({status})");
        }
        Self::find(folder)
    }

    /// Those in a folder.
    pub(crate) fn find(folder: &Path) -> anyhow::Result<Self> {
        let program = |name: &str| {
            let path = folder.join(name);
            if path.is_file() { Ok(path) } else { bail!("there is no {}", path.display()) }
        };
        // `heddle run` finds it beside itself.
        program("heddle-proxy")?;
        Ok(Self {
            control_plane: program("heddle-control-plane")?,
            heddle: program("heddle")?,
            shop: std::env::current_exe().context("cannot tell where this program is")?,
        })
    }
}
