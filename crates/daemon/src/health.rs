//! Which roles of this process are ready: the table behind `/healthz`.
//!
//! A role that was announced counts as not ready until it says otherwise. Draining makes the whole process unready.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Readiness of a process; cheap to clone.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    draining: bool,
    roles: BTreeMap<String, RoleHealth>,
}

/// Readiness of one role.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct RoleHealth {
    /// Whether it does its work.
    pub ready: bool,
    /// What it waits for or why it is not well; empty when it is.
    pub detail: String,
}

/// The document of `/healthz`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct HealthReport {
    /// Whether every role is ready and the process does not drain.
    pub ready: bool,
    /// Whether the process is stopping.
    pub draining: bool,
    /// Roles by name.
    pub roles: BTreeMap<String, RoleHealth>,
}

impl Health {
    /// A table without roles.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a role that is not ready yet; its handle reports for it.
    pub fn role(&self, name: &str) -> RoleHandle {
        self.lock().roles.insert(name.to_owned(), RoleHealth { ready: false, detail: "starting".to_owned() });
        RoleHandle { health: self.clone(), name: name.to_owned() }
    }

    /// The process stops: not ready from now on.
    pub fn drain(&self) {
        self.lock().draining = true;
    }

    /// The table as it stands.
    pub fn report(&self) -> HealthReport {
        let table = self.lock();
        let ready = !table.draining && table.roles.values().all(|it| it.ready);
        HealthReport { ready, draining: table.draining, roles: table.roles.clone() }
    }

    /// Whether every role is ready.
    pub fn ready(&self) -> bool {
        self.report().ready
    }
}

/// Reports for one role.
#[derive(Clone)]
pub struct RoleHandle {
    health: Health,
    name: String,
}

impl RoleHandle {
    /// It does its work.
    pub fn ready(&self) {
        self.set(RoleHealth { ready: true, detail: String::new() });
    }

    /// It is ready to take over, and `detail` says from whom.
    pub fn stands_by(&self, detail: impl Into<String>) {
        self.set(RoleHealth { ready: true, detail: detail.into() });
    }

    /// It does not, because of `detail`.
    pub fn unready(&self, detail: impl Into<String>) {
        self.set(RoleHealth { ready: false, detail: detail.into() });
    }

    fn set(&self, role: RoleHealth) {
        self.health.lock().roles.insert(self.name.clone(), role);
    }
}

/// Handler of `GET /healthz`: 200 when ready, else 503, with the table.
pub async fn healthz(State(health): State<Health>) -> (StatusCode, Json<HealthReport>) {
    let report = health.report();
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_when_every_role_is_and_it_does_not_drain() {
        let health = Health::new();
        let (api, builder) = (health.role("api"), health.role("builder"));
        assert!(!health.ready());
        api.ready();
        builder.ready();
        assert!(health.ready());
        builder.unready("no disk");
        assert_eq!(health.report().roles["builder"].detail, "no disk");
        builder.ready();
        health.drain();
        assert!(!health.ready());
    }
}
