//! `engine-provisioner recipes`: what there is.

use std::io::Write;

use daemon::config::{self, Sources};

use crate::recipe::{Recipe, platform};

#[derive(Debug, clap::Args)]
struct Settings {
    #[command(flatten)]
    common: crate::Settings,
}

impl config::Settings for Settings {
    const SECTION: &'static str = "engine-provisioner";
    const ABOUT: &'static str = "List the engine recipes";
    const PREFIXES: &'static [&'static str] = &["ENGINE_PROVISIONER_"];
}

pub(super) fn run(sources: &Sources) -> anyhow::Result<()> {
    let settings = config::load::<Settings>(sources)?.settings;
    let mut out = std::io::stdout().lock();
    for recipe in Recipe::all(settings.common.recipes_dir.as_deref())? {
        writeln!(out, "{:<10} {}", recipe.name, recipe.about)?;
        let Some(source) = &recipe.source else { continue };
        let variants: Vec<&str> = source
            .build
            .iter()
            .flat_map(|build| build.variants.keys())
            .map(|variant| variant.name())
            .collect();
        let archives = source
            .archives
            .iter()
            .filter(|archive| archive.platform == platform())
            .count();
        writeln!(
            out,
            "{:<10} version {}, builds {}, {archives} archives for {}",
            "",
            source.version,
            variants.join(" "),
            platform()
        )?;
    }
    Ok(())
}
