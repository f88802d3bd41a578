//! TLSRoutes and TCPRoutes: connections that are passed on unread. Pure.

use super::backend::{Backends, Speech, Unresolved};
use super::kind::Kind;
use super::object::RouteSpec;
use arco_model::route::UpstreamTarget;

/// The one who gets the connections; `Err` with the reason why not.
pub(super) fn target(
    kind: Kind,
    namespace: &str,
    spec: &RouteSpec,
    backends: &mut Backends<'_>,
) -> Result<Result<UpstreamTarget, Unresolved>, String> {
    let [rule] = spec.rules.as_slice() else {
        return Err(format!("a {} has one rule here", kind.word()));
    };
    let wanted: Vec<_> = rule.backend_refs.iter().filter(|it| it.weight != Some(0)).collect();
    let [backend] = wanted.as_slice() else {
        return Err(format!("connections of a {} go to one backend; shares need an HTTPRoute", kind.word()));
    };
    Ok(backends.referred((kind.word(), namespace), &backend.object(), Speech::default()))
}
