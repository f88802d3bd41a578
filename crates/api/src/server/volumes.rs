//! Volumes as people see them: rows, with what the machine or the cluster says of them.
//!
//! What must hold: rows say which volumes there are; when storage does not answer, they are shown all the same. A volume that
//! cannot be had as it is asked for is refused here, before anything is changed.

use super::Api;
use super::act::Target;
use super::error::ApiError;
use super::read::{next, page};
use crate::wire::{ComponentStorage, Page, PageQuery, StorageDocument, VolumeClassDocument, VolumeDocument};
use arco_model::component::{Component, Revision};
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::ComponentId;
use arco_model::name::{TenantName, VolumeName};
use arco_model::spec::{ComponentKind, VolumeKind, VolumeSpec};
use arco_model::storage::{AccessMode, VolumeClass, VolumeFacts};
use arco_orchestrator::Telling;
use arco_store::sql::{Query, VolumeRow};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a list of volumes waits for what storage says of them.
const WAIT: Duration = Duration::from_secs(8);

/// What storage says, by component and volume.
type Facts = BTreeMap<(ComponentId, VolumeName), Vec<VolumeFacts>>;

impl Api {
    /// What volumes can be made of.
    pub(super) async fn volume_classes(&self) -> Result<Vec<VolumeClassDocument>, ApiError> {
        let mut classes = self.deps.storage.classes().await?;
        classes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(classes.into_iter().map(VolumeClassDocument::from).collect())
    }

    /// What storage says now, as far as it answers.
    async fn volume_facts(&self, of: Option<&ComponentId>) -> Facts {
        match tokio::time::timeout(WAIT, self.deps.storage.volumes(of, Telling::Use)).await {
            Ok(Ok(facts)) => by_volume(facts),
            Ok(Err(error)) => {
                tracing::warn!(%error, "size and use of volumes are not known now");
                Facts::new()
            }
            Err(_) => {
                tracing::warn!(waited = ?WAIT, "size and use of volumes are not known now: storage does not answer");
                Facts::new()
            }
        }
    }

    /// Volumes that a component has or asks for.
    pub(super) async fn volumes(&self, component: &Component) -> Result<Vec<VolumeDocument>, ApiError> {
        let rows = self.deps.metadata.list::<VolumeRow>(&Query::parent(component.id.as_str())).await?.items;
        let facts = if rows.is_empty() { Facts::new() } else { self.volume_facts(Some(&component.id)).await };
        let used = self.volumes_in_use(component).await?;
        let of_row = |it: &VolumeRow| document(it, Some(component), used.contains(&it.name), &facts);
        let mut items: Vec<_> = rows.iter().map(|it| of_row(&it.value)).collect();
        for asked in component.spec.volumes.iter().filter(|it| !rows.iter().any(|row| row.value.name == it.name)) {
            items.push(VolumeDocument {
                application: component.application.to_string(),
                component: component.name.to_string(),
                name: asked.name.to_string(),
                path: asked.path.clone(),
                size_mb: asked.size_mb,
                kind: asked.kind,
                kept: false,
                id: String::new(),
                created_at: String::new(),
                class: asked.class.clone().unwrap_or_default(),
                access: Vec::new(),
                size_bytes: None,
                used_bytes: None,
            });
        }
        Ok(items)
    }

    pub(super) async fn tenant_volumes(
        &self,
        tenant: &TenantName,
        query: &PageQuery,
    ) -> Result<Page<VolumeDocument>, ApiError> {
        self.tenant_exists(tenant).await?;
        let (limit, after) = page(query)?;
        let metadata = &self.deps.metadata;
        let page = metadata.list::<VolumeRow>(&Query { limit, after, ..Query::tag(tenant.as_str()) }).await?;
        let components = metadata.list::<Component>(&Query::tag(tenant.as_str())).await?.items;
        let facts = if page.items.is_empty() { Facts::new() } else { self.volume_facts(None).await };
        let mut items = Vec::new();
        for it in &page.items {
            let row = &it.value;
            let owner = components.iter().map(|it| &it.value).find(|it| it.id == row.component_id);
            let used = match owner {
                Some(owner) => self.volumes_in_use(owner).await?.contains(&row.name),
                None => false,
            };
            items.push(document(row, owner, used, &facts));
        }
        Ok(Page { items, next: next(page.next) })
    }

    /// How much storage a tenant has.
    pub(super) async fn storage(&self, tenant: &TenantName) -> Result<StorageDocument, ApiError> {
        self.tenant_exists(tenant).await?;
        let rows = self.deps.metadata.list::<VolumeRow>(&Query::tag(tenant.as_str())).await?.items;
        let rows: Vec<VolumeRow> = rows.into_iter().map(|it| it.value).collect();
        let facts = if rows.is_empty() { Vec::new() } else { self.deps.storage.volumes(None, Telling::Use).await? };
        Ok(sum(&rows, &by_volume(facts)))
    }

    /// Whether volumes of a component can be had as they are asked for.
    pub(super) async fn volumes_fit(
        &self,
        target: &Target,
        asked: impl Iterator<Item = &VolumeSpec> + Send,
    ) -> Result<(), ApiError> {
        let asked: Vec<&VolumeSpec> = asked.filter(|it| it.kind != VolumeKind::Memory).collect();
        if asked.is_empty() {
            return Ok(());
        }
        let rows = self.deps.metadata.list::<VolumeRow>(&Query::tag(target.tenant.as_str())).await?.items;
        let of_it = |it: &VolumeRow| it.application == target.application && it.component == target.component;
        let rows: Vec<VolumeRow> = rows.into_iter().map(|it| it.value).filter(of_it).collect();
        let made = |it: &VolumeSpec| rows.iter().find(|row| row.name == it.name);
        let open = |it: &&VolumeSpec| it.class.is_some() || made(it).is_some_and(|row| row.size_mb < it.size_mb);
        let asked: Vec<&VolumeSpec> = asked.into_iter().filter(open).collect();
        if asked.is_empty() {
            return Ok(());
        }
        let storage = &self.deps.storage;
        let classes = storage.classes().await?;
        let facts = match asked.iter().find_map(|it| made(it)) {
            Some(row) => by_volume(storage.volumes(Some(&row.component_id), Telling::Facts).await?),
            None => Facts::new(),
        };
        for it in asked {
            let row = made(it);
            let held = row.and_then(|row| facts.get(&(row.component_id.clone(), row.name.clone())));
            fits(it, row.map(|row| row.size_mb), held.map(Vec::as_slice).unwrap_or_default(), &classes)?;
        }
        Ok(())
    }

    /// How many places of a component have their content: `asked`, and those above without an instance that have all
    /// volumes of their own still, as after it was scaled down.
    pub(super) async fn places_held(
        &self,
        component: &Component,
        revision: &Revision,
        asked: u32,
    ) -> Result<u32, ApiError> {
        let volumes = revision.spec.volumes.iter().filter(|it| it.kind == VolumeKind::Local);
        let own: Vec<&VolumeName> = volumes.map(|it| &it.name).collect();
        if revision.spec.kind != ComponentKind::Stateful || own.is_empty() {
            return Ok(asked);
        }
        let facts = self.deps.storage.volumes(Some(&component.id), Telling::Facts).await?;
        Ok(places_with(&own, asked, &facts))
    }

    /// Names of classes that volumes ask for and that are not here.
    pub(super) async fn unknown_classes(
        &self,
        asked: impl Iterator<Item = &VolumeSpec> + Send,
    ) -> Result<BTreeSet<String>, ApiError> {
        let mut asked: BTreeSet<String> = asked.filter_map(|it| it.class.clone()).collect();
        if !asked.is_empty() {
            let known = self.deps.storage.classes().await?;
            asked.retain(|name| !known.iter().any(|it| it.name == *name));
        }
        Ok(asked)
    }
}

/// How many places there are, from `asked` on, that have each of these volumes (at least one).
fn places_with(own: &[&VolumeName], asked: u32, facts: &[VolumeFacts]) -> u32 {
    let has = |name: &VolumeName, place: u32| facts.iter().any(|it| it.volume == *name && it.place == Some(place));
    (asked..u32::MAX).find(|place| !own.iter().all(|&name| has(name, *place))).unwrap_or(asked)
}

/// Whether a volume can be had. `size_mb`, `held`: what there is of it.
fn fits(
    asked: &VolumeSpec,
    size_mb: Option<u32>,
    held: &[VolumeFacts],
    classes: &[VolumeClass],
) -> Result<(), Problem> {
    let name = &asked.name;
    let known = |name: &str| classes.iter().find(|it| it.name == name);
    if let Some(class) = asked.class.as_deref() {
        if held.is_empty() && known(class).is_none() {
            let names: Vec<_> = classes.iter().map(|it| it.name.as_str()).collect();
            let message = format!("there is no class `{class}` of volumes; there are: {}", names.join(", "));
            return Err(Problem::invalid("class_unknown", message, "`arco volume classes` says what each can"));
        }
        if let Some(other) = held.iter().find(|it| it.class != class) {
            let message = format!("volume `{name}` is {} and cannot become `{class}`", of_class(&other.class));
            let advice = "ask for a volume of another name and that class, and move the content";
            return Err(Problem::new(ErrorKind::Conflict, "class_fixed", message, advice));
        }
    }
    let keeps = |it: &&VolumeFacts| known(&it.class).is_none_or(|class| !class.grows);
    if size_mb.is_some_and(|it| it < asked.size_mb)
        && let Some(it) = held.iter().find(keeps)
    {
        let message = format!("volume `{name}` is {}, whose volumes cannot grow", of_class(&it.class));
        let advice =
            "ask for a volume of another name and of a class that grows (`arco volume classes`), and move the content";
        return Err(Problem::new(ErrorKind::Conflict, "volume_keeps_size", message, advice));
    }
    Ok(())
}

fn of_class(name: &str) -> String {
    if name.is_empty() { "of no class".to_owned() } else { format!("of class `{name}`") }
}

fn by_volume(facts: Vec<VolumeFacts>) -> Facts {
    let mut found = Facts::new();
    for it in facts {
        found.entry((it.component.clone(), it.volume.clone())).or_default().push(it);
    }
    found
}

fn of_row<'a>(row: &VolumeRow, facts: &'a Facts) -> &'a [VolumeFacts] {
    facts.get(&(row.component_id.clone(), row.name.clone())).map(Vec::as_slice).unwrap_or_default()
}

/// How much is used, as far as it is known; `None` when nobody tells anything.
fn used(facts: &[VolumeFacts]) -> Option<u64> {
    facts.iter().filter_map(|it| it.used_bytes).reduce(|a, b| a + b)
}

fn document(row: &VolumeRow, owner: Option<&Component>, in_use: bool, facts: &Facts) -> VolumeDocument {
    let asked = owner.and_then(|it| it.spec.volumes.iter().find(|it| it.name == row.name));
    let facts = of_row(row, facts);
    let access: BTreeSet<AccessMode> = facts.iter().flat_map(|it| it.access.iter().copied()).collect();
    VolumeDocument {
        application: row.application.to_string(),
        component: row.component.to_string(),
        name: row.name.to_string(),
        path: asked.map(|it| it.path.clone()).unwrap_or_default(),
        size_mb: row.size_mb,
        kind: asked.map_or(VolumeKind::Shared, |it| it.kind),
        kept: !in_use,
        id: row.id.to_string(),
        created_at: row.created_at.rfc3339(),
        class: facts.first().map(|it| it.class.clone()).unwrap_or_default(),
        access: access.into_iter().map(|it| it.short().to_owned()).collect(),
        size_bytes: facts.iter().map(|it| it.size_bytes).reduce(|a, b| a + b),
        used_bytes: used(facts),
    }
}

/// What volumes with a row have and use together.
fn sum(rows: &[VolumeRow], facts: &Facts) -> StorageDocument {
    let mut whole = StorageDocument::default();
    let add = |to: &mut Option<u64>, more: Option<u64>| *to = to.iter().copied().chain(more).reduce(|a, b| a + b);
    for row in rows {
        let name = format!("{}/{}", row.application, row.component);
        let part: &mut ComponentStorage = whole.components.entry(name).or_default();
        let facts = of_row(row, facts);
        let (count, size, used) = (facts.len() as u64, facts.iter().map(|it| it.size_bytes).sum::<u64>(), used(facts));
        part.volumes += count;
        part.size_bytes += size;
        add(&mut part.used_bytes, used);
        whole.volumes += count;
        whole.size_bytes += size;
        add(&mut whole.used_bytes, used);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::sample;

    fn row(component: u64, name: &str) -> VolumeRow {
        let mut of = sample::component();
        (of.id, of.name) = (ComponentId::from_parts(component, 0), format!("c{component}").parse().unwrap());
        VolumeRow::new(&of, name.parse().unwrap(), 1)
    }

    fn held(component: u64, name: &str, class: &str, place: Option<u32>, used_bytes: Option<u64>) -> VolumeFacts {
        VolumeFacts {
            component: ComponentId::from_parts(component, 0),
            volume: name.parse().unwrap(),
            place,
            class: class.to_owned(),
            access: vec![AccessMode::ReadWriteOnce],
            size_bytes: 100,
            used_bytes,
        }
    }

    #[test]
    fn storage_is_summed_by_component_and_tenant() {
        let rows = [row(1, "a"), row(1, "b"), row(2, "a")];
        let all = by_volume(vec![
            held(1, "a", "local", Some(0), Some(10)),
            held(1, "a", "local", Some(1), Some(20)),
            held(1, "b", "local", None, None),
            held(3, "a", "local", None, Some(99)), // of another tenant
        ]);
        let found = sum(&rows, &all);
        assert_eq!((found.volumes, found.size_bytes, found.used_bytes), (3, 300, Some(30)));
        let whole = ComponentStorage { volumes: 3, size_bytes: 300, used_bytes: Some(30) };
        assert_eq!(found.components["shop/c1"], whole);
        assert_eq!(found.components["shop/c2"], ComponentStorage::default(), "nobody knows: `used_bytes` is not 0");
        let shown = document(&rows[0], None, false, &all);
        assert_eq!((shown.size_bytes, shown.used_bytes, shown.access), (Some(200), Some(30), vec!["RWO".to_owned()]));
        let shown = document(&rows[2], None, false, &all);
        assert_eq!((shown.size_bytes, shown.used_bytes, shown.class.as_str()), (None, None, ""));
    }

    #[test]
    fn places_without_an_instance_count_while_they_have_every_volume() {
        let (data, log): (VolumeName, VolumeName) = ("data".parse().unwrap(), "log".parse().unwrap());
        let all = [("data", 0), ("data", 1), ("data", 2), ("data", 4), ("log", 0), ("log", 1)]
            .map(|(name, place)| held(1, name, "local", Some(place), None));
        let rows: [(&[&VolumeName], u32, u32); 5] = [
            (&[&data], 1, 3),
            (&[&data], 3, 3),
            (&[&data], 4, 5),
            (&[&data, &log], 1, 2),
            (&[&log], 3, 3), // asked for, and not there yet
        ];
        for (own, asked, expected) in rows {
            assert_eq!(places_with(own, asked, &all), expected, "{own:?} {asked}");
        }
        let shared = [held(1, "data", "local", None, None)];
        assert_eq!(places_with(&[&data], 1, &shared), 1, "of a time when it was shared");
    }

    #[test]
    fn a_volume_is_had_only_as_its_class_can() {
        let class = |name: &str, grows| VolumeClass {
            name: name.to_owned(),
            provisioner: "example.com/any".to_owned(),
            default: false,
            access: Vec::new(),
            grows,
            snapshots: None,
            retains: false,
            limits: None,
        };
        let classes = [class("fast", true), class("slow", false)];
        // Asked for: size and class; there: size, and the class of each place; the code.
        type Row<'a> = (u32, Option<&'a str>, Option<u32>, &'a [&'a str], Option<&'a str>);
        let table: &[Row<'_>] = &[
            (10, None, None, &[], None),
            (10, Some("fast"), None, &[], None),
            (10, Some("none"), None, &[], Some("class_unknown")),
            (20, None, Some(10), &["fast"], None),
            (20, Some("fast"), Some(10), &["fast", "fast"], None),
            (20, None, Some(10), &["slow"], Some("volume_keeps_size")),
            (20, Some("slow"), Some(10), &["slow"], Some("volume_keeps_size")),
            (20, None, Some(10), &["fast", "slow"], Some("volume_keeps_size")),
            (10, Some("slow"), Some(10), &["slow"], None),
            (10, Some("fast"), Some(10), &["slow"], Some("class_fixed")),
            (20, Some("fast"), Some(10), &["slow"], Some("class_fixed")),
            (10, Some("fast"), Some(10), &[""], Some("class_fixed")),
            // The class was deleted: what is there stays, and grows no more.
            (10, Some("gone"), Some(10), &["gone"], None),
            (20, Some("gone"), Some(10), &["gone"], Some("volume_keeps_size")),
            (20, None, Some(10), &[""], Some("volume_keeps_size")),
            // A row without a claim yet.
            (20, None, Some(10), &[], None),
        ];
        for (size_mb, class, had, places, code) in table {
            let asked = VolumeSpec {
                name: "a".parse().unwrap(),
                path: "/a".to_owned(),
                size_mb: *size_mb,
                kind: VolumeKind::Shared,
                class: class.map(str::to_owned),
            };
            let places: Vec<_> = places.iter().map(|it| held(1, "a", it, None, None)).collect();
            let found = fits(&asked, *had, &places, &classes).err().map(|it| it.code);
            assert_eq!(found.as_deref(), *code, "{size_mb} {class:?} {had:?} {places:?}");
        }
    }
}
