//! `arco bind`, `arco unbind`: which components a component may call.

use super::args::WaitArgs;
use super::failure::{Failure, exit};
use super::operations;
use super::reference::Reference;
use super::session::Session;
use super::spec_flags::binding;
use super::wait::{self, Show};
use arco_api::wire::SpecPatch;
use clap::Args;

/// Flags of `bind`.
#[derive(Args, Debug)]
pub(crate) struct BindArgs {
    /// The component that calls
    #[arg(value_name = "APP/COMPONENT")]
    reference: Reference,
    /// The component that is called; in the same application its name is enough
    #[arg(value_name = "[APP/]COMPONENT[=ALIAS]")]
    target: String,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Flags of `unbind`.
#[derive(Args, Debug)]
pub(crate) struct UnbindArgs {
    /// The component that calls
    #[arg(value_name = "APP/COMPONENT")]
    reference: Reference,
    /// Alias, or the component that is called
    #[arg(value_name = "ALIAS|[APP/]COMPONENT")]
    target: String,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Binds.
pub(crate) async fn bind(args: &BindArgs, session: &Session<'_>) -> Result<(), Failure> {
    let named = session.component(&args.reference).await?;
    let binding = binding(&args.target, &named.application)?;
    let patch = SpecPatch { bindings: [(binding.alias.clone(), Some(binding.clone()))].into(), ..SpecPatch::default() };
    let started = session.client.patch(&session.tenant, named.pair(), &patch).await?;
    let ended = wait::operation(started, &args.wait, Show::Progress, session).await?;
    let alias = &binding.alias;
    operations::done(
        &ended,
        &format!("calls {}/{} as {alias}_HOST, {alias}_PORT, {alias}_URL", binding.application, binding.component),
        session,
    );
    Ok(())
}

/// Takes a binding away.
pub(crate) async fn unbind(args: &UnbindArgs, session: &Session<'_>) -> Result<(), Failure> {
    let named = session.component(&args.reference).await?;
    let component = session.client.component(&session.tenant, named.pair()).await?;
    let meant = |it: &&arco_model::spec::Binding| {
        it.alias == args.target
            || format!("{}/{}", it.application, it.component) == args.target
            || (it.application.as_str() == named.application && it.component.as_str() == args.target)
    };
    let aliases: Vec<&str> = component.spec.bindings.iter().filter(meant).map(|it| it.alias.as_str()).collect();
    if aliases.is_empty() {
        let there: Vec<&str> = component.spec.bindings.iter().map(|it| it.alias.as_str()).collect();
        let advice = if there.is_empty() {
            "it has no binding".to_owned()
        } else {
            format!("its bindings are {}", there.join(", "))
        };
        return Err(Failure::new(
            exit::NOT_FOUND,
            "not_found",
            format!("{named} is not bound to `{}`", args.target),
            advice,
        ));
    }
    let bindings = aliases.iter().map(|it| (it.to_string(), None)).collect();
    let started =
        session.client.patch(&session.tenant, named.pair(), &SpecPatch { bindings, ..SpecPatch::default() }).await?;
    let ended = wait::operation(started, &args.wait, Show::Progress, session).await?;
    operations::done(&ended, &format!("is not bound as {} any more", aliases.join(", ")), session);
    Ok(())
}
