//! The command lines that a profile makes.

use std::collections::BTreeMap;
use std::fmt;

use super::{HomeFile, Level, LoginFlow, Profile, platform};
use crate::template::{Template, TemplateError, Values, Variable};

/// A program with its arguments and its whole environment.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// The program first.
    pub argv: Vec<String>,
    /// Nothing but this is in the environment, apart from what the sandbox adds.
    pub env: BTreeMap<String, String>,
    /// Files that must lie in the home directory: path relative to it, and content.
    pub files: Vec<(String, String)>,
}

/// Without the values of the environment and without contents: keys are among them.
impl fmt::Debug for CommandLine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: Vec<&String> = self.files.iter().map(|(path, _)| path).collect();
        formatter
            .debug_struct("CommandLine")
            .field("argv", &self.argv)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("files", &files)
            .finish()
    }
}

/// Why there is no command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// A template or a value is refused.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The package has no program for this machine.
    #[error("{agent} has no program for {platform}")]
    Platform {
        /// The agent.
        agent: String,
        /// This machine.
        platform: String,
    },
    /// Something is asked for that the CLI cannot do.
    #[error("{agent} cannot be told {what}")]
    Impossible {
        /// The agent.
        agent: String,
        /// What was asked for.
        what: &'static str,
    },
}

impl Profile {
    /// The command line that starts the CLI.
    ///
    /// `Install` and `Home` must have values. `Model`, `Effort` and `Session` are used when they have one; `BaseUrl`
    /// with `Key` points the CLI at that endpoint instead of its provider's.
    pub fn start_command(&self, level: Level, values: &Values) -> Result<CommandLine, CommandError> {
        let start = self.start(level);
        let impossible = |what| CommandError::Impossible {
            agent: self.name.clone(),
            what,
        };
        let mut args: Vec<&Template> = start.args.iter().collect();
        let mut env: BTreeMap<&String, &Template> = self.environment.iter().collect();
        let mut files: &[HomeFile] = &[];
        let mut model_args = start
            .model_args
            .as_ref()
            .or(self.model.as_ref().map(|model| &model.args));
        if values.get(Variable::BaseUrl).is_some() {
            let endpoint = self
                .endpoint
                .as_ref()
                .ok_or_else(|| impossible("of another endpoint"))?;
            args.extend(&endpoint.args);
            env.extend(&endpoint.environment);
            files = &endpoint.files;
            model_args = endpoint.model_args.as_ref().or(model_args);
        }
        let mut values = values.clone();
        if values.get(Variable::Model).is_none()
            && let Some(default) = self.model.as_ref().and_then(|model| model.default.as_ref())
        {
            values = values.with(Variable::Model, default);
        }
        if values.get(Variable::Model).is_some() {
            args.extend(model_args.ok_or_else(|| impossible("a model"))?);
        }
        if values.get(Variable::Effort).is_some() {
            let effort = self.effort.as_ref().ok_or_else(|| impossible("an effort"))?;
            args.extend(&effort.args);
        }
        if values.get(Variable::Session).is_some() {
            // A CLI that is not told at the start is told in its dialogue.
            args.extend(start.resume_args.iter().flatten());
        }
        self.command(args, env, files, &values)
    }

    /// The command line of a login flow. A flow of files runs no program: its arguments are empty.
    pub fn login_command(&self, flow: &LoginFlow, values: &Values) -> Result<CommandLine, CommandError> {
        let env = self.environment.iter().collect();
        match flow {
            LoginFlow::DeviceCode { args }
            | LoginFlow::PasteCode { args }
            | LoginFlow::ApiKeyStdin { args } => self.command(args.iter().collect(), env, &[], values),
            LoginFlow::ApiKeyFiles { files } => Ok(CommandLine {
                argv: Vec::new(),
                env: BTreeMap::new(),
                files: expand_files(files, values)?,
            }),
        }
    }

    /// The command line that tells whether somebody is logged in, by its exit code. None: the evidence file decides.
    pub fn status_command(&self, values: &Values) -> Option<Result<CommandLine, CommandError>> {
        let args = self.login.status_args.as_ref()?;
        Some(self.command(
            args.iter().collect(),
            self.environment.iter().collect(),
            &[],
            values,
        ))
    }

    /// The command line that logs out. None: removing the home is all there is to do.
    pub fn logout_command(&self, values: &Values) -> Option<Result<CommandLine, CommandError>> {
        let args = self.login.logout_args.as_ref()?;
        Some(self.command(
            args.iter().collect(),
            self.environment.iter().collect(),
            &[],
            values,
        ))
    }

    fn command(
        &self,
        args: Vec<&Template>,
        env: BTreeMap<&String, &Template>,
        files: &[HomeFile],
        values: &Values,
    ) -> Result<CommandLine, CommandError> {
        let platform = platform();
        let program = (self.package.programs.get(&platform))
            .or_else(|| self.package.programs.get("any"))
            .ok_or_else(|| CommandError::Platform {
                agent: self.name.clone(),
                platform,
            })?;
        let install = values.get(Variable::Install).ok_or(TemplateError::Missing {
            variable: Variable::Install,
        })?;
        let mut argv: Vec<String> = self.package.interpreter.iter().cloned().collect();
        argv.push(format!("{install}/node_modules/{program}"));
        for arg in args {
            argv.push(arg.expand(values)?);
        }
        let env = env
            .into_iter()
            .map(|(name, value)| Ok((name.clone(), value.expand(values)?)))
            .collect::<Result<_, TemplateError>>()?;
        Ok(CommandLine {
            argv,
            env,
            files: expand_files(files, values)?,
        })
    }
}

fn expand_files(files: &[HomeFile], values: &Values) -> Result<Vec<(String, String)>, TemplateError> {
    files
        .iter()
        .map(|file| Ok((file.path.clone(), file.content.expand(values)?)))
        .collect()
}
