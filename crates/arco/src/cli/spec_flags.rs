//! Flags that say what is asked of a component, as a change of its spec.

use super::failure::Failure;
use super::file;
use super::reference::Reference;
use super::secret;
use super::ui::Ui;
use arco_api::wire::SpecPatch;
use arco_model::name::{ApplicationName, ComponentName, VolumeName};
use arco_model::spec::{Binding, Command, ComponentKind, Port, Protocol, VolumeKind, VolumeSpec};
use clap::{Args, ValueEnum};

/// How its instances live.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// Interchangeable instances
    Stateless,
    /// Instances with a place and a volume of their own
    Stateful,
    /// Runs to its end once for each revision
    Job,
    /// Runs to its end at each time of its schedule
    Cron,
}

/// What is asked of a component. A flag that is not given keeps the stored value.
#[derive(Args, Debug, Default)]
pub(crate) struct SpecFlags {
    /// Port that it listens on, with its protocol (http, https, h2c, grpc, grpcs, tcp, udp) [default: as detected]
    #[arg(long, value_name = "PORT[/PROTOCOL]", value_parser = port)]
    pub(crate) port: Vec<Port>,
    /// How its instances live [default: stateless]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "stateless|stateful|job|cron")]
    pub(crate) kind: Option<Kind>,
    /// When it runs, for `--kind cron`: five fields, UTC
    #[arg(long, value_name = "CRON")]
    pub(crate) schedule: Option<String>,
    /// A variable
    #[arg(long, short, value_name = "K=V", value_parser = pair)]
    pub(crate) env: Vec<(String, String)>,
    /// A secret variable, from a file or from standard input
    #[arg(long, value_name = "K=@FILE|K=-")]
    pub(crate) secret: Vec<String>,
    /// A volume; CLASS is one of `arco volume classes`
    #[arg(long, value_name = "NAME:/PATH[:SIZE_MB[:CLASS]]", value_parser = volume)]
    pub(crate) volume: Vec<VolumeSpec>,
    /// A configuration file of the instances, with what FILE holds
    #[arg(long, value_name = "/PATH=@FILE")]
    pub(crate) file: Vec<String>,
    /// A component that it calls; gives it ALIAS_HOST, ALIAS_PORT and ALIAS_URL
    #[arg(long, value_name = "APP/COMPONENT[=ALIAS]")]
    pub(crate) bind: Vec<String>,
    /// How many instances
    #[arg(long, value_name = "N")]
    pub(crate) replicas: Option<u32>,
    /// Memory of one instance in MiB [default: 512]
    #[arg(long, value_name = "N")]
    pub(crate) memory_mb: Option<u32>,
    /// Thousandths of a core of one instance; 0 for no limit
    #[arg(long, value_name = "N")]
    pub(crate) cpu_milli: Option<u32>,
    /// What runs, instead of what was detected
    #[arg(long, value_name = "CMD")]
    pub(crate) command: Option<String>,
    /// A variable that only the build sees
    #[arg(long, value_name = "K=V", value_parser = pair)]
    pub(crate) build_env: Vec<(String, String)>,
}

impl SpecFlags {
    /// As a change. `application` is where bindings without an application point to.
    pub(crate) fn patch(&self, application: &str, ui: &Ui) -> Result<SpecPatch, Failure> {
        let mut patch = SpecPatch {
            kind: self.kind.map(|it| match it {
                Kind::Stateless => ComponentKind::Stateless,
                Kind::Stateful => ComponentKind::Stateful,
                Kind::Job => ComponentKind::Job,
                Kind::Cron => ComponentKind::Cron,
            }),
            schedule: self.schedule.clone().map(Some),
            replicas: self.replicas,
            memory_mb: self.memory_mb,
            cpu_milli: self.cpu_milli,
            ports: (!self.port.is_empty()).then(|| self.port.clone()),
            command: self.command.clone().map(|it| Some(Command::Shell(it))),
            secrets: secret::read(&self.secret, ui)?,
            files: file::read(&self.file)?,
            ..SpecPatch::default()
        };
        patch.env.extend(self.env.iter().map(|(key, value)| (key.clone(), Some(value.clone()))));
        patch.build_env.extend(self.build_env.iter().map(|(key, value)| (key.clone(), Some(value.clone()))));
        patch.volumes.extend(self.volume.iter().map(|it| (it.name.to_string(), Some(it.clone()))));
        for text in &self.bind {
            let binding = binding(text, application)?;
            patch.bindings.insert(binding.alias.clone(), Some(binding));
        }
        Ok(patch)
    }
}

/// `K=V`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("give NAME=VALUE".to_owned()),
    }
}

/// `8080`, `8080/tcp`.
pub(crate) fn port(text: &str) -> Result<Port, String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "http"));
    let port = number.parse::<u16>().ok().filter(|it| *it > 0).ok_or("a port is a number from 1 to 65535")?;
    let protocol = match protocol {
        "http" => Protocol::Http,
        "https" => Protocol::Https,
        "h2c" => Protocol::H2c,
        "grpc" => Protocol::Grpc,
        "grpcs" => Protocol::Grpcs,
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return Err("the protocol is http, https, h2c, grpc, grpcs, tcp or udp".to_owned()),
    };
    Ok(Port { port, protocol, outer: true })
}

/// `NAME:/path[:size_mb[:class]]`.
pub(crate) fn volume(text: &str) -> Result<VolumeSpec, String> {
    let (name, rest) = text.split_once(':').ok_or("give NAME:/PATH, NAME:/PATH:SIZE_MB or NAME:/PATH:SIZE_MB:CLASS")?;
    let mut parts = rest.splitn(3, ':');
    let path = parts.next().unwrap_or_default();
    let size_mb = match parts.next() {
        Some(size) => size.parse().map_err(|_| "the size is a number of MiB")?,
        None => VolumeSpec::default_size_mb(),
    };
    let class = parts.next().map(str::to_owned);
    if class.as_ref().is_some_and(String::is_empty) {
        return Err("the class is one of `arco volume classes`".to_owned());
    }
    if !path.starts_with('/') {
        return Err("the path is absolute, as /data".to_owned());
    }
    let name = VolumeName::new(name).map_err(|it| it.to_string())?;
    Ok(VolumeSpec { name, path: path.to_owned(), size_mb, kind: VolumeKind::Shared, class })
}

/// `[APP/]COMPONENT[=ALIAS]`; the alias is the component's name in upper case when it is not given.
pub(crate) fn binding(text: &str, application: &str) -> Result<Binding, Failure> {
    let (target, alias) = match text.split_once('=') {
        Some((target, alias)) => (target, Some(alias)),
        None => (text, None),
    };
    let wrong = |why: String| {
        Failure::usage("binding_invalid", format!("`{text}` is not a binding: {why}"), "give `APP/COMPONENT=ALIAS`")
    };
    let qualified = if target.contains('/') { target.to_owned() } else { format!("{application}/{target}") };
    let reference: Reference = qualified.parse().map_err(wrong)?;
    let component = reference.component.unwrap_or_default();
    let alias = alias.map_or_else(|| component.to_ascii_uppercase().replace('-', "_"), str::to_ascii_uppercase);
    Ok(Binding {
        application: ApplicationName::new(reference.application).map_err(|it| wrong(it.to_string()))?,
        component: ComponentName::new(component).map_err(|it| wrong(it.to_string()))?,
        alias,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_volumes_pairs_and_bindings_are_read() {
        assert_eq!(port("53/udp").unwrap(), Port { port: 53, protocol: Protocol::Udp, outer: true });
        assert_eq!(port("50051/grpcs").unwrap().protocol, Protocol::Grpcs);
        for bad in ["0", "x", "80/x", "65536", ""] {
            assert!(port(bad).is_err(), "{bad}");
        }
        let read = |text| volume(text).map(|it| (it.name.to_string(), it.path, it.size_mb));
        assert_eq!(read("a:/b").unwrap(), ("a".into(), "/b".into(), 1024));
        assert_eq!(read("a:/b:64").unwrap(), ("a".into(), "/b".into(), 64));
        let class = |text| volume(text).map(|it| (it.size_mb, it.class));
        assert_eq!(class("a:/b:64").unwrap(), (64, None));
        assert_eq!(class("a:/b:64:fast").unwrap(), (64, Some("fast".into())));
        for bad in ["a", "a:b", "A:/b", "a:/b:x", ":/b", "a:/b:", "a:/b:64:", "a:/b:fast"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
        assert_eq!(pair("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert!(pair("=x").is_err() && pair("A").is_err());
        let read = |text| binding(text, "demo").map(|it| format!("{}/{} {}", it.application, it.component, it.alias));
        assert_eq!(read("my-db").unwrap(), "demo/my-db MY_DB");
        assert_eq!(read("shop/db=store").unwrap(), "shop/db STORE");
        assert!(read("a/b/c").is_err() && read("/x").is_err());
    }
}
