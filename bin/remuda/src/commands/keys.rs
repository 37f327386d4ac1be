//! `remuda keys`: who may use this control plane. Works on the store in the data directory, beside a running daemon,
//! which notices a new or revoked key within about a second.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::{Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::json;
use store::{KeyInfo, NewKeySpec, Role, Store, StoreError, StoreSettings};

use crate::commands::{block_on, tasks::parse_duration};
use crate::failure::{Exit, Failure};
use crate::output::{print_json, print_table, state_cell, table};
use crate::paths;

/// Make, list and revoke API keys
///
/// Keys are kept as hashes in the store. The text of a key is shown once, when it is made.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  remuda keys create laptop --owner alice\n  remuda keys create ci --owner build \
    --expires 720h\n  remuda keys list\n  remuda keys revoke KEY_ID"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,

    /// Write JSON
    #[arg(long, global = true)]
    json: bool,

    /// The control plane's data directory [default: the user's]
    #[arg(
        long,
        global = true,
        value_name = "DIRECTORY",
        env = "ORCHD_DATA_DIR",
        hide_env_values = true
    )]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a key and show it, once
    #[command(after_help = "Examples:\n  remuda keys create laptop --owner alice\n  \
        remuda keys create gpu1 --role node\n  export REMUDA_API_KEY=$(remuda keys create ci --quiet)")]
    Create {
        /// What it is for
        name: String,
        /// The person or service account that it stands for [default: the name]
        #[arg(long)]
        owner: Option<String>,
        /// What it may do
        #[arg(long, value_enum, default_value_t = RoleName::User)]
        role: RoleName,
        /// After what time it is no longer valid, such as 720h [default: never]
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        expires: Option<Duration>,
        /// Print the key alone
        #[arg(long, short, conflicts_with = "json")]
        quiet: bool,
    },
    /// List the keys, without their texts
    #[command(after_help = "Example:\n  remuda keys list --json")]
    List,
    /// End a key
    #[command(after_help = "Example:\n  remuda keys revoke KEY_ID")]
    Revoke {
        /// The key's id, as `remuda keys list` shows it
        id: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoleName {
    /// Submit tasks and see their owner's
    User,
    /// Also see everybody's tasks, drain and reload pools
    Admin,
    /// Register nodes, nothing else
    Node,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::User => Self::User,
            RoleName::Admin => Self::Admin,
            RoleName::Node => Self::Node,
        }
    }
}

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let directory = match arguments.data_dir {
        Some(directory) => directory,
        None => paths::data_directory()?,
    };
    std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let path = directory.join(paths::STORE_FILE);
    let store = Store::open_beside(StoreSettings::new(path))?;
    block_on(async {
        let outcome = act(&store, arguments.action, arguments.json).await;
        store.close().await;
        outcome
    })
}

async fn act(store: &Store, action: Action, json: bool) -> Result<()> {
    match action {
        Action::Create {
            name,
            owner,
            role,
            expires,
            quiet,
        } => {
            let expires_ms = expires.map(|expires| now_ms().saturating_add(ms(expires)));
            let owner = owner.unwrap_or_else(|| name.clone());
            let is_first = store.list_keys().await?.is_empty();
            let key = store
                .create_key(NewKeySpec {
                    name,
                    owner,
                    role: role.into(),
                    expires_ms,
                })
                .await?;
            if json {
                let mut value = json_of(&key.info);
                value["key"] = key.secret.into();
                return print_json(&value);
            }
            anstream::println!("{}", key.secret);
            if !quiet {
                anstream::eprintln!(
                    "This is the only time that it is shown. Its id is {}.",
                    key.info.id
                );
                if is_first {
                    anstream::eprintln!("It is the first one: from now on the control plane asks for a key.");
                }
            }
            Ok(())
        }
        Action::List => list(&store.list_keys().await?, json),
        Action::Revoke { id } => {
            let info = store.revoke_key(&id).await.map_err(|error| match error {
                StoreError::NoSuchKey => Failure::new(Exit::NotFound, format!("there is no key {id:?}"))
                    .hint("`remuda keys list` shows the ids")
                    .into(),
                other => anyhow::Error::new(other),
            })?;
            if json {
                return print_json(&json_of(&info));
            }
            anstream::eprintln!("key {} ({}) is revoked", info.id, info.name);
            Ok(())
        }
    }
}

fn list(keys: &[KeyInfo], json: bool) -> Result<()> {
    if json {
        return print_json(&keys.iter().map(json_of).collect::<Vec<_>>());
    }
    let mut table = table(&["ID", "NAME", "OWNER", "ROLE", "STATE", "CREATED", "EXPIRES"]);
    for key in keys {
        table.add_row([
            key.id.as_str().into(),
            key.name.as_ref().into(),
            key.owner.as_ref().into(),
            role_name(key.role).into(),
            state_cell(state(key, now_ms())),
            time(key.created_ms).into(),
            comfy_table::Cell::new(key.expires_ms.map_or_else(|| "never".to_owned(), time)),
        ]);
    }
    print_table(&table, "no keys yet; `remuda keys create NAME` makes one")
}

fn json_of(key: &KeyInfo) -> serde_json::Value {
    json!({
        "id": key.id.as_str(),
        "name": key.name,
        "owner": key.owner,
        "role": role_name(key.role),
        "state": state(key, now_ms()),
        "created_at": time(key.created_ms),
        "expires_at": key.expires_ms.map(time),
        "revoked_at": key.revoked_ms.map(time),
    })
}

fn state(key: &KeyInfo, now_ms: u64) -> &'static str {
    match (key.revoked_ms, key.expires_ms) {
        (Some(_), _) => "revoked",
        (None, Some(expires_ms)) if expires_ms <= now_ms => "expired",
        _ => "valid",
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::User => "user",
        Role::Admin => "admin",
        Role::Node => "node",
    }
}

fn time(ms: u64) -> String {
    let timestamp = i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    timestamp.map_or_else(
        || "far off".to_owned(),
        |timestamp| timestamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    )
}

fn now_ms() -> u64 {
    ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
