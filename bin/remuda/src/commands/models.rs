//! `remuda models`: the model files on this machine, and the models that a control plane serves.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use daemon::secret::Secret;
use model_store::{Model, Source, Store, StoreError, StoreOptions};
use serde_json::{Value, json};

use crate::client::{ControlPlane, list_of};
use crate::commands::{confirm, interruptible};
use crate::failure::{Exit, Failure};
use crate::output::{print_json, print_table, size, table};
use crate::progress::Shown;

/// Get, list, check and remove model files
///
/// Models are kept by content: pulled twice, a file lies there once. A download that was cut off goes on where it was.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  remuda models pull hf:ORG/REPO/FILE.gguf\n  remuda models pull ./my.gguf --name mine\n  \
    remuda models list\n  remuda models list --remote\n  remuda models rm mine"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,

    /// Write JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    place: Place,
}

/// Where model files are and come from
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model store")]
struct Place {
    /// The cache directory in which models are kept [default: the user's]
    #[arg(
        long,
        global = true,
        value_name = "DIRECTORY",
        env = "ENGINE_PROVISIONER_CACHE_DIR",
        hide_env_values = true
    )]
    cache_dir: Option<PathBuf>,

    /// Address of the model hub, for models named hf:ORG/REPO/FILE
    #[arg(long, global = true, value_name = "URL", env = "HF_ENDPOINT", hide_env_values = true,
          default_value = model_store::HUB_ENDPOINT)]
    hub_endpoint: String,

    /// Token for the model hub
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "HF_TOKEN",
        hide_env_values = true
    )]
    hub_token: Option<Secret>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Get a model
    #[command(after_help = "Examples:\n  remuda models pull hf:ORG/REPO/FILE.gguf\n  \
        remuda models pull hf:ORG/REPO@REVISION/FILE.gguf --name small\n  \
        remuda models pull https://models.example.net/small.gguf#sha256=HEX\n  remuda models pull ./small.gguf")]
    Pull {
        /// Where it is: hf:ORG/REPO/FILE, https:... or a path; #sha256=HEX may follow
        source: Source,
        /// The name to keep it by [default: the file's, without .gguf]
        #[arg(long)]
        name: Option<String>,
    },
    /// List the models
    #[command(after_help = "Examples:\n  remuda models list\n  remuda models list --remote")]
    List {
        /// Those that a control plane serves, instead of those on this machine
        #[arg(long)]
        remote: bool,
        #[command(flatten)]
        control_plane: ControlPlane,
    },
    /// Read models again and compare them with their SHA-256
    #[command(after_help = "Examples:\n  remuda models verify\n  remuda models verify small")]
    Verify {
        /// Which models [default: all]
        names: Vec<String>,
    },
    /// Remove models
    #[command(alias = "remove", after_help = "Example:\n  remuda models rm small --yes")]
    Rm {
        /// Which models
        #[arg(required = true)]
        names: Vec<String>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let json = arguments.json;
    let store = arguments.place.store();
    interruptible(async {
        match arguments.action {
            Action::Pull { source, name } => pull(&store, &source, name.as_deref(), json).await,
            Action::List {
                remote: true,
                control_plane,
            } => list_remote(&control_plane, json).await,
            Action::List { remote: false, .. } => list(&store.list()?, json),
            Action::Verify { names } => verify(&store, names, json).await,
            Action::Rm { names, yes } => remove(&store, &names, yes),
        }
    })
    .await
}

impl Place {
    fn store(&self) -> Store {
        let cache_dir = self
            .cache_dir
            .clone()
            .unwrap_or_else(model_store::default_cache_dir);
        let mut options = StoreOptions::new(cache_dir);
        options.hub_endpoint.clone_from(&self.hub_endpoint);
        options.hub_token = self.hub_token.as_ref().map(|token| token.expose().to_owned());
        Store::new(options)
    }
}

async fn pull(store: &Store, source: &Source, name: Option<&str>, json: bool) -> Result<()> {
    // What is kept of a path must mean the same from every directory.
    let mut source = source.clone();
    if let model_store::Place::File(path) = &mut source.place {
        *path = std::path::absolute(&*path).with_context(|| format!("the path {}", path.display()))?;
    }
    let shown = Shown::new(json);
    let pulled = store.pull(&source, name, &shown.sink()).await;
    drop(shown);
    let model = pulled.map_err(known)?;
    if json {
        return print_json(&model);
    }
    anstream::println!("{}", model.name);
    anstream::eprintln!("{} in {}", size(model.size_bytes), model.path.display());
    Ok(())
}

fn list(models: &[Model], json: bool) -> Result<()> {
    if json {
        return print_json(&models);
    }
    let mut table = table(&["MODEL", "SIZE", "FROM", "PULLED", "SHA-256"]);
    for model in models {
        let digest: String = model.sha256.to_string().chars().take(12).collect();
        table.add_row([
            &model.name,
            &size(model.size_bytes),
            &model.source,
            &short_time(&model.created),
            &digest,
        ]);
    }
    print_table(
        &table,
        "no models yet; `remuda models pull SOURCE` gets one (the demo model is built in)",
    )
}

/// A time without the fractions of its second.
fn short_time(text: &str) -> String {
    let parsed = text
        .parse::<jiff::Timestamp>()
        .map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    parsed.unwrap_or_else(|_| text.to_owned())
}

async fn list_remote(control_plane: &ControlPlane, json: bool) -> Result<()> {
    let answer: Value = control_plane.client()?.get("/v1/models").await?;
    let models: Vec<Value> = list_of(answer, "data")?;
    if json {
        return print_json(&models);
    }
    for model in &models {
        anstream::println!("{}", model["id"].as_str().unwrap_or("?"));
    }
    if models.is_empty() {
        anstream::eprintln!("it serves no model at the moment");
    }
    Ok(())
}

async fn verify(store: &Store, names: Vec<String>, json: bool) -> Result<()> {
    let names = match names.is_empty() {
        true => store.list()?.into_iter().map(|model| model.name).collect(),
        false => names,
    };
    let mut found = Vec::new();
    let mut damaged = 0;
    for name in &names {
        let shown = Shown::new(json);
        let outcome = store.verify(name, &shown.sink()).await;
        drop(shown);
        match outcome {
            Ok(model) if json => found.push(json!({"name": model.name, "ok": true})),
            Ok(model) => anstream::println!("{}: ok", model.name),
            Err(error @ StoreError::Damaged { .. }) => {
                damaged += 1;
                match json {
                    true => found.push(json!({"name": name, "ok": false, "error": error.to_string()})),
                    false => anstream::println!("{error}"),
                }
            }
            Err(error) => return Err(known(error)),
        }
    }
    if json {
        print_json(&found)?;
    }
    match damaged {
        0 => Ok(()),
        count => Err(Failure::new(
            Exit::Failed,
            format!("{count} of {} models are damaged", names.len()),
        )
        .into()),
    }
}

fn remove(store: &Store, names: &[String], yes: bool) -> Result<()> {
    for name in names {
        store
            .get(name)
            .and_then(|model| model.ok_or_else(|| StoreError::NoSuchModel(name.clone())))
            .map_err(known)?;
    }
    confirm(&format!("Remove {}?", names.join(", ")), yes)?;
    for name in names {
        let removed = store.remove(name).with_context(|| format!("removing {name}"))?;
        anstream::eprintln!("{name} is removed, {} free again", size(removed.freed_bytes));
    }
    Ok(())
}

/// Errors that have a better exit code or a hint.
fn known(error: StoreError) -> anyhow::Error {
    match &error {
        StoreError::NoSuchModel(_) => Failure::new(Exit::NotFound, error.to_string())
            .hint("`remuda models list` shows what there is")
            .into(),
        StoreError::NameTaken { .. } => Failure::new(Exit::Failed, error.to_string())
            .hint("--name NAME gives it another one")
            .into(),
        StoreError::Name(_) => Failure::new(Exit::Usage, error.to_string()).into(),
        _ => error.into(),
    }
}
