//! `remuda up`: everything on this machine, until Ctrl-C.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::answer;
use crate::client::DEFAULT_URL;
use crate::demo;
use crate::failure::report;
use crate::local::{Local, Wanted, engine_failure};
use crate::output::{bold, dim};
use crate::progress::Shown;

/// Start everything on this machine and stay until Ctrl-C
///
/// Starts a control plane with a node in the same process, and an engine for each pool of remuda.toml; without pools,
/// one engine with --model or the demo model. Every other setting is taken from remuda.toml and the environment
/// (docs/settings.md).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  remuda up\n  remuda up --model hf:ORG/REPO/FILE.gguf\n  remuda up --addr 127.0.0.1:8081\n  \
    remuda keys create me && remuda up --addr 0.0.0.0:8080"
)]
pub(crate) struct Arguments {
    /// The model: a path, hf:ORG/REPO/FILE, https:... or a name of `remuda models list` [default: the demo model]
    #[arg(long)]
    model: Option<String>,

    /// How many tasks the engine takes at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    slots: Option<u32>,

    /// Address to listen on [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT")]
    addr: Option<SocketAddr>,

    /// Let everybody who reaches the address use it, also from other machines
    #[arg(long)]
    insecure: bool,

    /// The settings file [default: remuda.toml in the working directory, if there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let wanted = Wanted {
        flags: flags(&arguments),
        model: arguments.model,
        slots: arguments.slots,
        for_one_run: false,
        ..Wanted::default()
    };
    let local = Local::start(&wanted)?;
    local.shutdown().listen_to_signals_in_terminal()?;
    let shown = Shown::new(false);
    let mut told = None;
    let ready = local.ready(&shown, |status| {
        if told != status.last_error {
            told.clone_from(&status.last_error);
            shown.clear();
            let _ = report(&engine_failure(status).into());
            anstream::eprintln!("{}", dim("it is tried again; Ctrl-C gives up"));
        }
        Ok(())
    });
    tokio::select! {
        outcome = ready => {
            outcome?;
            welcome(&local).await;
        }
        () = local.shutdown().stopped() => {}
    }
    drop(shown);
    let outcome = local.run().await;
    anstream::eprintln!("stopped");
    outcome
}

fn flags(arguments: &Arguments) -> Vec<String> {
    let mut flags = Vec::new();
    if let Some(addr) = arguments.addr {
        flags.extend(["--addr".to_owned(), addr.to_string()]);
    }
    if let Some(config) = &arguments.config {
        flags.extend(["--config".to_owned(), config.display().to_string()]);
    }
    if arguments.insecure {
        flags.push("--insecure".to_owned());
    }
    flags
}

/// Says where it is and what to try.
async fn welcome(local: &Local) {
    let url = local.url();
    // Whoever may not list the models without a key needs one.
    let listed = match local.client() {
        Ok(client) => answer::models(&client).await,
        Err(error) => Err(error),
    };
    let needs_key = listed.is_err();
    let models = listed.unwrap_or_default();
    let with = match models.is_empty() {
        true => String::new(),
        false => format!(" with {}", bold(models.join(", "))),
    };
    anstream::println!("Remuda is up at {}{with}. Ctrl-C stops everything.", bold(&url));
    if local.is_demo {
        anstream::println!("{}", dim(demo::NOTE.replace("remuda run", "remuda up")));
    }
    let model = models.first().map_or(demo::NAME, String::as_str);
    let try_it = Example {
        url: &url,
        model,
        needs_key,
        ca: local.ca.as_deref(),
    };
    anstream::println!("\n{}\n{}\n", bold("With curl:"), try_it.curl());
    anstream::println!("{}\n{}\n", bold("With an OpenAI client:"), try_it.python());
    anstream::println!("{} {}", bold("To talk with it:"), try_it.chat());
}

/// What can be typed to try it.
struct Example<'a> {
    url: &'a str,
    model: &'a str,
    needs_key: bool,
    /// The CA that clients have to be told of.
    ca: Option<&'a Path>,
}

impl Example<'_> {
    fn curl(&self) -> String {
        let Self { url, model, .. } = self;
        let header = if self.needs_key {
            " -H \"authorization: Bearer $REMUDA_API_KEY\""
        } else {
            ""
        };
        let ca = self
            .ca
            .map_or_else(String::new, |ca| format!("--cacert {} ", ca.display()));
        format!(
            "  curl {ca}{url}/v1/chat/completions -H 'content-type: application/json'{header} \\\n    \
             -d '{{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \"3*67\"}}]}}'"
        )
    }

    fn python(&self) -> String {
        let Self { url, model, .. } = self;
        let mut lines = Vec::new();
        if self.needs_key {
            lines.push("import os".to_owned());
        }
        lines.push("from openai import OpenAI".to_owned());
        let mut with = String::new();
        if let Some(ca) = self.ca {
            lines.push("import httpx, ssl".to_owned());
            lines.push(format!(
                "trust = ssl.create_default_context(cafile=\"{}\")",
                ca.display()
            ));
            with = ", http_client=httpx.Client(verify=trust)".to_owned();
        }
        let key = if self.needs_key {
            "os.environ[\"REMUDA_API_KEY\"]"
        } else {
            "\"none\""
        };
        lines.push(format!(
            "client = OpenAI(base_url=\"{url}/v1\", api_key={key}{with})"
        ));
        lines.push("question = [{\"role\": \"user\", \"content\": \"3*67\"}]".to_owned());
        lines.push(format!(
            "answer = client.chat.completions.create(model=\"{model}\", messages=question)"
        ));
        lines.push("print(answer.choices[0].message.content)".to_owned());
        format!("  {}", lines.join("\n  "))
    }

    fn chat(&self) -> String {
        let url = match self.url == DEFAULT_URL {
            true => String::new(),
            false => format!(" --url {}", self.url),
        };
        let ca = self
            .ca
            .map_or_else(String::new, |ca| format!(" --ca {}", ca.display()));
        let key = if self.needs_key {
            " --api-key \"$REMUDA_API_KEY\""
        } else {
            ""
        };
        format!("remuda chat{url}{ca}{key}")
    }
}
