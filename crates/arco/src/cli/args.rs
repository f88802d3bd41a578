//! All commands, and the flags that every command has.

use super::reference::Reference;
use super::ui::Format;
use super::{
    adopt, apply, bind, certificate, cluster, config, context, credential, delete, deploy, detect, doctor, env, exec,
    export, file, import, logs, operations, port_forward, power, registry, revisions, route, secret, stack, tenant,
    volume,
};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Turns source code into running, reachable applications
#[derive(Debug, Parser)]
#[command(name = "arco", version, arg_required_else_help = true, max_term_width = 100, disable_help_subcommand = true)]
#[command(
    after_help = "First steps:\n  arco server                       start the platform (as root)\n  arco deploy . --app demo          build and run this folder\n  arco status demo\n\nExit status: 0 done, 1 the operation failed, 2 wrong usage, 3 the platform cannot be reached,\n4 not allowed, 5 not found, 6 conflict."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Args, Debug)]
pub(crate) struct Global {
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, hide_possible_values = true, value_name = "table|json")]
    pub(crate) output: Format,
    /// Platform to talk to [default: ~/.config/arco/context.toml, then /var/lib/arco/admin.toml]
    #[arg(long, global = true, value_name = "FILE", env = "ARCO_CONTEXT", hide_env_values = true)]
    pub(crate) context: Option<PathBuf>,
    /// Tenant [default: that of the context, else `default`]
    #[arg(long, global = true, value_name = "NAME", env = "ARCO_TENANT", hide_env_values = true)]
    pub(crate) tenant: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the platform on this machine
    #[command(after_help = "Example:\n  arco server --domain apps.example.com")]
    Server(crate::server::ServerArgs),
    /// Run only the gateway, from a file; or explain where a request goes
    #[command(
        after_help = "Examples:\n  arco gateway --config gateway.yaml --check\n  arco gateway --config gateway.yaml\n  arco gateway explain https://shop.example.com/api"
    )]
    Gateway(crate::server::GatewayArgs),
    /// Gateway and DNS of a server (started by it)
    #[command(hide = true)]
    DataPlane(crate::server::DataPlaneArgs),
    /// Build a source and run it
    #[command(after_help = deploy::EXAMPLES)]
    Deploy(deploy::DeployArgs),
    /// Make a whole application as one file says, and print the difference
    #[command(
        after_help = "Example:\n  arco apply -f arco.yaml --dry-run\n\n`arco config schema` prints the JSON Schema of the file."
    )]
    Apply(apply::ApplyArgs),
    /// Tell what a deploy would do, without doing it
    #[command(after_help = "Example:\n  arco detect ./api")]
    Detect(detect::DetectArgs),
    /// List applications, components, status and URLs
    #[command(visible_alias = "ls", after_help = "Example:\n  arco list")]
    List,
    /// Show how an application or component is, and why
    #[command(after_help = "Example:\n  arco status demo/web -o json")]
    Status {
        /// APP or APP/COMPONENT
        #[arg(value_name = "APP[/COMPONENT]")]
        reference: Reference,
    },
    /// Show instances and what they use, and when cron components run
    #[command(after_help = "Example:\n  arco ps demo/web")]
    Ps {
        /// APP or APP/COMPONENT
        #[arg(value_name = "APP[/COMPONENT]")]
        reference: Reference,
    },
    /// Show logs of instances, builds and operations
    #[command(
        after_help = "Examples:\n  arco logs demo/web -f --since 10m\n  arco logs demo/web --build\n  arco logs --operation 01jz0000000000000000"
    )]
    Logs(logs::LogsArgs),
    /// Run a program in a running instance
    #[command(
        after_help = "Examples:\n  arco exec demo/web -it -- /bin/sh\n  arco exec demo/web -- printenv PORT\n\nEnds with the exit status of the program."
    )]
    Exec(exec::ExecArgs),
    /// Reach ports inside an instance from this machine
    #[command(
        after_help = "Examples:\n  arco port-forward demo/db 5432\n  arco port-forward demo/web 8080:80 :9229\n\nAlso ports that are not declared, and programs that listen on 127.0.0.1 of the instance only. Goes on until Ctrl-C."
    )]
    PortForward(port_forward::ForwardArgs),
    /// Run a program in an instance of its own
    #[command(
        after_help = "Examples:\n  arco run demo/web -- ./manage.py migrate\n  arco run demo/web -it -- /bin/sh\n  arco run demo/db -i -- psql < dump.sql\n\nThe instance has the variables and volumes of what serves, and is gone when the program ended. Ends with the exit status of the program."
    )]
    Run(exec::RunArgs),
    /// Let a stopped component run
    #[command(after_help = "Example:\n  arco start demo/web")]
    Start(power::PowerArgs),
    /// End every instance; the URL answers 503
    #[command(after_help = "Example:\n  arco stop demo/web")]
    Stop(power::PowerArgs),
    /// Replace every instance, without losing a request
    #[command(after_help = "Example:\n  arco restart demo/web")]
    Restart(power::PowerArgs),
    /// Change the number or the size of instances
    #[command(
        after_help = "Examples:\n  arco scale demo/web --replicas 3 --memory-mb 256\n  arco scale demo/web --min 2 --max 10 --cpu 70     by load\n  arco scale demo/web --off                         as many as there are now"
    )]
    Scale(power::ScaleArgs),
    /// List revisions
    #[command(after_help = "Example:\n  arco revisions demo/web")]
    Revisions {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
    },
    /// Serve an older revision again
    #[command(
        after_help = "Examples:\n  arco rollback demo/web          the revision before this one\n  arco rollback demo/web 3"
    )]
    Rollback(revisions::RollbackArgs),
    /// Set, unset and list variables
    #[command(subcommand, after_help = "Example:\n  arco env set demo/web GREETING=hello LEVEL=2")]
    Env(env::EnvCommand),
    /// Set, unset and list secret variables
    #[command(
        subcommand,
        after_help = "Examples:\n  arco secret set demo/web TOKEN=@token.txt\n  pass show token | arco secret set demo/web TOKEN=-"
    )]
    Secret(secret::SecretCommand),
    /// Set, unset and list configuration files
    #[command(subcommand, after_help = "Example:\n  arco file set demo/web /etc/app/app.conf --from app.conf")]
    File(file::FileCommand),
    /// Set, unset and list credentials for private Git repositories
    #[command(
        subcommand,
        after_help = "Examples:\n  arco credential set https://git.example.com/team --token @token.txt\n  arco credential set git@git.example.com:team --ssh-key @deploy_key"
    )]
    Credential(credential::CredentialCommand),
    /// Add, resize, remove and list volumes
    #[command(subcommand, after_help = "Example:\n  arco volume add demo/web files:/data:2048")]
    Volume(volume::VolumeCommand),
    /// Let a component call another
    #[command(
        after_help = "Example:\n  arco bind demo/web demo/store=STORE      gives it STORE_HOST, STORE_PORT and STORE_URL"
    )]
    Bind(bind::BindArgs),
    /// Take a binding away
    #[command(after_help = "Example:\n  arco unbind demo/web STORE")]
    Unbind(bind::UnbindArgs),
    /// Add, change, delete and list routes
    #[command(subcommand, after_help = "Example:\n  arco route add demo/web shop.example.com")]
    Route(route::RouteCommand),
    /// Add, replace, delete and list certificates of hosts
    #[command(
        subcommand,
        after_help = "Example:\n  arco certificate add example --cert @fullchain.pem --key @privkey.pem"
    )]
    Certificate(certificate::CertificateCommand),
    /// Delete a component or a whole application
    #[command(after_help = "Examples:\n  arco delete demo/web\n  arco delete demo --yes --keep-volumes")]
    Delete(delete::DeleteArgs),
    /// Show what workloads of a Kubernetes namespace would be as components, and make them
    #[command(
        after_help = "Examples:\n  arco adopt --namespace shop --app shop          what they would be, and what is lost\n  arco adopt --namespace shop --app shop --yes    make them; what is there stays as it is"
    )]
    Adopt(adopt::AdoptArgs),
    /// Write applications with all that belongs to them into one file
    #[command(after_help = export::EXAMPLES)]
    Export(export::ExportArgs),
    /// Make the applications of such a file on this platform
    #[command(after_help = import::EXAMPLES)]
    Import(import::ImportArgs),
    /// List operations, newest first
    #[command(after_help = "Example:\n  arco operations demo --failed")]
    Operations(operations::OperationsArgs),
    /// Show or cancel one operation
    #[command(subcommand, after_help = "Example:\n  arco operation cancel 01jz0000000000000000")]
    Operation(operations::OperationCommand),
    /// Show the context; make, list and revoke those of other people
    #[command(subcommand, after_help = "Example:\n  arco context create --name ada --role developer --file ada.toml")]
    Context(context::ContextCommand),
    /// Get a token for pushing images to the platform's registry
    #[command(
        subcommand,
        after_help = "Example:\n  arco registry token demo/web | docker login --username t --password-stdin registry.example.com"
    )]
    Registry(registry::RegistryCommand),
    /// Save, load, list and delete the images that sources are built and run on
    #[command(
        subcommand,
        after_help = "Example:\n  arco stack save stacks.tar      as root, on a Debian machine\n  arco stack load stacks.tar      for a platform that cannot make them"
    )]
    Stack(stack::StackCommand),
    /// Make, change, list and delete tenants
    #[command(subcommand, after_help = "Example:\n  arco tenant create team-b --memory-quota-mb 4096")]
    Tenant(tenant::TenantCommand),
    /// Install the platform on a Kubernetes cluster
    #[command(
        subcommand,
        after_help = "Example:\n  arco cluster image push registry.example.com/platform/arco:1\n  arco cluster manifest --domain apps.example.com --trust-registry --image registry.example.com/platform/arco:1 | kubectl apply --server-side -f -"
    )]
    Cluster(cluster::ClusterCommand),
    /// Print or check the server's configuration
    #[command(subcommand, after_help = "Example:\n  arco config template > /etc/arco.toml")]
    Config(config::ConfigCommand),
    /// Check this machine and say how to mend what is missing
    #[command(
        after_help = "Examples:\n  arco doctor\n  arco doctor --cluster --config arco.toml --image registry.example.com/platform/arco:1"
    )]
    Doctor(doctor::DoctorArgs),
    /// Print a completion script
    #[command(after_help = "Example:\n  arco completion bash > /etc/bash_completion.d/arco")]
    Completion {
        /// bash, zsh or fish
        #[arg(value_name = "bash|zsh|fish")]
        shell: clap_complete::Shell,
    },
}

/// Flags of commands that wait for their operation.
#[derive(Args, Debug)]
pub(crate) struct WaitArgs {
    /// Do not wait for the end
    #[arg(long)]
    pub(crate) detach: bool,
    /// Wait at most so many seconds; then exit with 1, and the operation goes on
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
}
