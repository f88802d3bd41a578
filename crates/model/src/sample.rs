//! What tests of every crate begin with: one component, its first revision and an operation; a test says only what it is about.
//!
//! Not here: rows, which stores make. The platform itself uses nothing of this.
#![allow(clippy::unwrap_used, reason = "a name that is written here is one")]

use crate::artifact::{Digest, ImageRef};
use crate::component::{Component, ObservedState, Power, Revision, RunDefaults};
use crate::id::{ApplicationId, ComponentId, OperationId, RevisionId};
use crate::job::Topic;
use crate::name::TenantName;
use crate::operation::{Operation, OperationKind, OperationStatus};
use crate::source::Source;
use crate::spec::ComponentSpec;
use crate::time::Timestamp;

/// `shop/web` of the default tenant: one stateless instance of an image is asked for, nothing was built yet.
///
/// # Panics
/// Never: its names are names.
pub fn component() -> Component {
    Component {
        id: ComponentId::from_parts(1, 1),
        tenant: TenantName::default_tenant(),
        application_id: ApplicationId::from_parts(1, 1),
        application: "shop".parse().unwrap(),
        name: "web".parse().unwrap(),
        spec: ComponentSpec::new(Source::Image { reference: "stack/base".into() }),
        generation: 1,
        power: Power::On,
        restarts_asked: 0,
        desired_revision: None,
        last_revision_number: 0,
        observed: ObservedState::default(),
        created_at: Timestamp(0),
        arriving: None,
        arriving_places: 0,
    }
}

/// The first revision of a component, with the spec that it has now.
pub fn revision(component: &Component) -> Revision {
    Revision {
        id: RevisionId::from_parts(1, 1),
        component_id: component.id.clone(),
        number: 1,
        artifact: ImageRef { repository: "default/shop/web".to_owned(), digest: Digest::of(b"image") },
        defaults: RunDefaults::default(),
        spec: component.spec.clone(),
        build_key: "key".to_owned(),
        commit: None,
        cause: "deploy".to_owned(),
        operation_id: OperationId::from_parts(1, 1),
        created_at: Timestamp(0),
    }
}

/// An operation of a component, which the controller rolls out; it began with time, and has until the day after.
pub fn operation(component: &Component, kind: OperationKind) -> Operation {
    Operation {
        id: OperationId::from_parts(1, 1),
        kind,
        tenant: component.tenant.clone(),
        application: component.application.clone(),
        component: component.name.clone(),
        component_id: component.id.clone(),
        status: OperationStatus::RollingOut,
        generation: component.generation,
        revision: None,
        revision_number: None,
        problem: None,
        topic: Topic::Controller,
        enqueued: true,
        cancel_asked: false,
        no_cache: false,
        build_ms: None,
        rollout_ms: None,
        created_at: Timestamp(0),
        rollout_at: None,
        ended_at: None,
        deadline: Timestamp(86_400_000),
    }
}
