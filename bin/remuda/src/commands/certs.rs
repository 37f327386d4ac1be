//! `remuda certs`: a private certificate authority for control plane and nodes.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use daemon::certs;
use jiff::Timestamp;
use serde_json::json;

use crate::output::{print_json, print_table, state_cell, table};
use crate::paths;

/// Make a private CA and certificates for control plane and nodes
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  remuda certs init\n  remuda certs issue control-plane --host cp.example.net\n  \
    remuda certs issue gpu1 --host gpu1 --host 10.0.0.7\n  remuda certs show"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,

    /// Where the CA and the certificates are kept [default: certs in the data directory]
    #[arg(long, global = true, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,

    /// Write JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make the CA
    #[command(after_help = "Example:\n  remuda certs init --days 3650")]
    Init {
        /// How long it is valid
        #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
        /// Replace one that is there; everything that it has signed is worthless then
        #[arg(long)]
        force: bool,
    },
    /// Issue a certificate for a control plane or a node, good for both sides of a connection
    #[command(
        after_help = "Examples:\n  remuda certs issue control-plane --host cp.example.net\n  \
        remuda certs issue gpu1 --host gpu1 --host 10.0.0.7 --days 90"
    )]
    Issue {
        /// Whose it is: `control-plane`, or a node's id
        name: String,
        /// A host name or address by which it is reached; can be given several times
        #[arg(long, value_name = "HOST")]
        host: Vec<String>,
        /// How long it is valid
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
        /// Replace one that is there
        #[arg(long)]
        force: bool,
    },
    /// Show certificates: whose they are, who signed them, until when they are valid
    #[command(after_help = "Examples:\n  remuda certs show\n  remuda certs show /etc/remuda/node.pem")]
    Show {
        /// Files in PEM form [default: all in the directory]
        files: Vec<PathBuf>,
    },
}

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let json = arguments.json;
    let directory = match arguments.directory {
        Some(directory) => directory,
        None => paths::certs_directory()?,
    };
    match arguments.action {
        Action::Init { days, force } => {
            let written = certs::init(&directory, days, force)?;
            print_written(&written, json)?;
            if !json {
                anstream::eprintln!(
                    "Give {} to every machine; its key stays here.
Next: remuda certs issue control-plane --host \
                     HOST, then one for each node",
                    written.cert.display()
                );
            }
            Ok(())
        }
        Action::Issue {
            name,
            host,
            days,
            force,
        } => {
            let request = certs::Request {
                name,
                alt_names: host,
                from: SystemTime::now(),
                days,
                force,
            };
            print_written(&certs::issue(&directory, &request)?, json)
        }
        Action::Show { files } => {
            let files = if files.is_empty() {
                certificates_in(&directory)?
            } else {
                files
            };
            show(&files, json)
        }
    }
}

fn print_written(written: &certs::Written, json: bool) -> Result<()> {
    if json {
        let valid_until = time(written.not_after)?;
        return print_json(&json!({"cert": written.cert, "key": written.key, "not_after": valid_until}));
    }
    anstream::println!("{}", written.cert.display());
    anstream::println!("{}", written.key.display());
    anstream::eprintln!("valid until {}", time(written.not_after)?);
    Ok(())
}

fn certificates_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", directory.display())),
    };
    let paths: std::io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.with_context(|| format!("reading {}", directory.display()))?;
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "crt" || extension == "pem")
    });
    paths.sort();
    Ok(paths)
}

fn show(files: &[PathBuf], json: bool) -> Result<()> {
    let mut values = Vec::new();
    let mut table = table(&["FILE", "SUBJECT", "ISSUER", "VALID UNTIL", "STATE"]);
    for file in files {
        let about = certs::about(file)?;
        let state = state(&about, SystemTime::now());
        let (from, until) = (time(about.not_before)?, time(about.not_after)?);
        table.add_row([
            file.display().to_string().into(),
            about.subject.as_str().into(),
            about.issuer.as_str().into(),
            until.as_str().into(),
            state_cell(state),
        ]);
        values.push(json!({
            "file": file, "subject": about.subject, "issuer": about.issuer, "not_before": from, "not_after": until,
            "state": state,
        }));
    }
    if json {
        print_json(&values)
    } else {
        print_table(&table, "no certificates yet; `remuda certs init` begins")
    }
}

fn state(about: &certs::About, now: SystemTime) -> &'static str {
    if now < about.not_before {
        "not valid yet"
    } else if now >= about.not_after {
        "expired"
    } else {
        "valid"
    }
}

fn time(time: SystemTime) -> Result<String> {
    let timestamp = Timestamp::try_from(time).context("a certificate's time is out of range")?;
    Ok(timestamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}
