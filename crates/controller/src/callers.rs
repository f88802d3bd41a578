//! Which components are bound to which: who is looked at when a component becomes ready, moves or is gone.
//!
//! What must hold: a caller is remembered before its look reads what it is bound to, so that a change which comes during
//! the look causes another one. Known is who was looked at by this controller: whoever was not, will be. Not here: what
//! a binding gives a caller (`model::plan`).

use arco_model::id::ComponentId;
use arco_model::name::{ApplicationName, ComponentName, TenantName};
use arco_model::spec::Binding;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A component by its names; it need not exist.
type Called = (TenantName, ApplicationName, ComponentName);

#[derive(Default)]
struct State {
    callers: HashMap<Called, HashSet<ComponentId>>,
    called: HashMap<ComponentId, Vec<Called>>,
}

/// The bindings of every component that was looked at.
#[derive(Default)]
pub(crate) struct Callers(Mutex<State>);

impl Callers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a component is bound to these and to no others.
    pub(crate) fn bind(&self, caller: &ComponentId, tenant: &TenantName, bindings: &[Binding]) {
        let called: Vec<Called> =
            bindings.iter().map(|it| (tenant.clone(), it.application.clone(), it.component.clone())).collect();
        let mut state = self.lock();
        if state.called.get(caller).map_or(called.is_empty(), |it| *it == called) {
            return;
        }
        state.let_go(caller);
        for it in &called {
            state.callers.entry(it.clone()).or_default().insert(caller.clone());
        }
        if !called.is_empty() {
            state.called.insert(caller.clone(), called);
        }
    }

    /// A component is gone.
    pub(crate) fn forget(&self, caller: &ComponentId) {
        self.lock().let_go(caller);
    }

    /// Who is bound to a component.
    pub(crate) fn of(
        &self,
        tenant: &TenantName,
        application: &ApplicationName,
        component: &ComponentName,
    ) -> Vec<ComponentId> {
        let called = (tenant.clone(), application.clone(), component.clone());
        self.lock().callers.get(&called).map(|it| it.iter().cloned().collect()).unwrap_or_default()
    }
}

impl State {
    fn let_go(&mut self, caller: &ComponentId) {
        for it in self.called.remove(caller).unwrap_or_default() {
            if let Some(callers) = self.callers.get_mut(&it) {
                callers.remove(caller);
                if callers.is_empty() {
                    self.callers.remove(&it);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_bound_to_a_component_is_known_until_it_says_otherwise() {
        let callers = Callers::default();
        let (tenant, other) = (TenantName::default_tenant(), TenantName::new("other").unwrap());
        let application = ApplicationName::new("shop").unwrap();
        let name = |it: &str| ComponentName::new(it).unwrap();
        let to = |it: &str| Binding { application: application.clone(), component: name(it), alias: "IT".to_owned() };
        let (first, second) = (ComponentId::from_parts(1, 1), ComponentId::from_parts(1, 2));
        let of = |it: &str| {
            let mut found = callers.of(&tenant, &application, &name(it));
            found.sort();
            found
        };
        callers.bind(&first, &tenant, &[to("db"), to("cache")]);
        callers.bind(&second, &tenant, &[to("db")]);
        callers.bind(&ComponentId::from_parts(1, 3), &other, &[to("db")]);
        assert_eq!((of("db"), of("cache")), (vec![first.clone(), second.clone()], vec![first.clone()]));
        callers.bind(&first, &tenant, &[to("cache")]);
        assert_eq!((of("db"), of("cache")), (vec![second.clone()], vec![first.clone()]));
        callers.bind(&first, &tenant, &[]);
        callers.forget(&second);
        assert_eq!((of("db"), of("cache")), (vec![], vec![]));
        assert_eq!(callers.lock().callers.len(), 1, "nothing is kept of what is gone");
    }
}
