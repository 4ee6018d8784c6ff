//! From what was typed to who does it, and the commands that are too small for a module.

use clap::CommandFactory as _;
use http::Method;
use serde_json::Value;

use crate::{
    apply,
    args::{Cli, Command, ContextCommand, Global, Namespace},
    client::Client,
    context::{ContextError, ContextFile},
    delete, describe,
    error::{Error, exit},
    explain, get, inject, install,
    output::{self, Paint},
    revisions, root, run, status,
    table::Table,
    token,
};

/// What every command that talks to the control plane needs.
pub(crate) struct Session {
    /// Who answers.
    pub(crate) client: Client,
    /// Colours of standard output.
    pub(crate) paint: Paint,
}

impl Session {
    fn open(global: &Global) -> Result<Self, Error> {
        let client = Client::new(global.overrides().resolve()?)?;
        Ok(Self { client, paint: Paint::for_stdout(global.color) })
    }

    /// The namespace to use where an object names none.
    pub(crate) fn namespace<'a>(&'a self, typed: &'a Namespace) -> &'a str {
        typed.namespace.as_deref().unwrap_or_else(|| self.default_namespace())
    }

    /// The namespace to use where nobody named one.
    pub(crate) fn default_namespace(&self) -> &str {
        self.client.context().namespace.as_deref().unwrap_or("default")
    }
}

/// Does what was typed.
pub(crate) async fn dispatch(cli: Cli) -> Result<u8, Error> {
    let global = cli.global;
    let session = || Session::open(&global);
    match cli.command {
        Command::Apply(args) => apply::apply(&session()?, &args).await,
        Command::Diff(args) => apply::diff(&session()?, &args).await,
        Command::Get(args) => get::get(&session()?, &args).await,
        Command::Describe(args) => describe::describe(&session()?, &args).await,
        Command::Delete(args) => delete::delete(&session()?, &args).await,
        Command::Explain { what } => explain::explain(&what),
        Command::Rollback(args) => revisions::rollback(&session()?, &args).await,
        Command::Revisions(args) => revisions::revisions(&session()?, &args).await,
        Command::Token(command) => token::join(&session()?, command).await,
        Command::Revoke { account, namespace, output } => {
            let session = session()?;
            match account {
                Some(account) => token::revoke(&session, &account, &namespace, output).await,
                None => token::revoked(&session, output).await,
            }
        }
        Command::ApiToken(command) => token::api(&session()?, command).await,
        Command::Root(command) => root::root(&session()?, &global, &command).await,
        Command::Status(args) => status::status(&session()?, &args).await,
        // A join file is enough to run; the control plane's API may be out of reach then.
        Command::Run(args) => run::run(session, *args).await,
        Command::Inject(args) => inject::inject(&global, &args),
        Command::Uninject(files) => inject::uninject(&global, &files),
        Command::Install(args) => install::install(&args, &Paint::for_stdout(global.color)).await,
        Command::Uninstall(args) => install::uninstall(&args),
        Command::Context(command) => context(&global, command),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "heddle", &mut text);
            output::print(&String::from_utf8_lossy(&text))?;
            Ok(exit::OK)
        }
        Command::Version { server } => {
            output::print(concat!("heddle ", env!("CARGO_PKG_VERSION"), "\n"))?;
            if server {
                let api: Value = session()?.client.call(Method::GET, &["openapi.json"], &[], None).await?;
                let version = api.pointer("/info/version").and_then(Value::as_str).unwrap_or("of unknown version");
                output::print(&format!("heddle-control-plane {version}\n"))?;
            }
            Ok(exit::OK)
        }
    }
}

fn context(global: &Global, command: ContextCommand) -> Result<u8, Error> {
    let overrides = global.overrides();
    let path = overrides.path()?;
    let mut file = ContextFile::read(&path)?.ok_or_else(|| ContextError::NoFile(path.clone()))?;
    match command {
        ContextCommand::List => {
            let mut table = Table::new(&["CURRENT", "NAME", "ADDRESS"]);
            for context in &file.contexts {
                let current = file.current_context.as_deref() == Some(&context.name);
                table.row([if current { "*" } else { "" }, &context.name, &context.address]);
            }
            output::print(&table.to_string())?;
        }
        ContextCommand::Use { name } => {
            file.find(&name, &path)?;
            file.current_context = Some(name.clone());
            file.write(&path)?;
            output::print(&format!("context {name} is used from now on\n"))?;
        }
    }
    Ok(exit::OK)
}
