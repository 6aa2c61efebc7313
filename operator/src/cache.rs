//! I/O: what a watch has seen so far, kept in memory, with a call for each change that gives the object before and after it.
//!
//! Knowing both sides lets a trigger be a function of the difference, and a deletion that happened while the watch was away is still seen as
//! one. What came and went while it was away leaves no trace in either list; who writes the objects that it watches asks for [`Cache::each_relist`]
//! too. What does not live here: what a change means (each controller's triggers).
//!
//! Invariant: a cache that says it is ready holds a complete list; a broken watch keeps the last one.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// Names an object of a known kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// Of an object.
    pub fn of<T: Resource>(object: &T) -> Self {
        let meta = object.meta();
        Self { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }

    /// Of names.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// One object's change. At least one side is there.
#[derive(Debug)]
pub struct Change<'a, T> {
    /// Before; `None` when it is new here.
    pub old: Option<&'a T>,
    /// After; `None` when it was deleted.
    pub new: Option<&'a T>,
}

/// The objects of one watch.
#[derive(Debug)]
pub struct Cache<T> {
    state: watch::Sender<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    objects: BTreeMap<Key, Arc<T>>,
    /// Complete lists so far.
    lists: u64,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self { state: watch::Sender::new(State { objects: BTreeMap::new(), lists: 0 }) }
    }
}

impl<T: Resource> Cache<T> {
    /// The object of that name, if there is one.
    pub fn get(&self, key: &Key) -> Option<Arc<T>> {
        self.state.borrow().objects.get(key).cloned()
    }

    /// All objects in order of their keys.
    pub fn list(&self) -> Vec<Arc<T>> {
        self.state.borrow().objects.values().cloned().collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.state.borrow().objects.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for the first complete list.
    pub async fn ready(&self) {
        // Fails only when the sender is gone, which `self` holds.
        self.state.subscribe().wait_for(|state| state.lists > 0).await.ok();
    }

    /// Calls `on_relist` after each complete list that follows a broken watch, for ever. What was written and deleted by another while the watch was
    /// away is in no list and leads to no change; so whoever writes such objects looks again at all that should be there.
    pub async fn each_relist(&self, on_relist: impl Fn()) {
        self.ready().await;
        let mut state = self.state.subscribe();
        let mut seen = 1;
        // Fails only when the sender is gone, which `self` holds.
        while let Ok(now) = state.wait_for(|state| state.lists > seen).await.map(|state| state.lists) {
            seen = now;
            on_relist();
        }
    }

    /// Watches what `api` and `config` select, for ever. See [`Cache::follow`].
    pub async fn watch(&self, api: Api<T>, config: watcher::Config, on_change: impl Fn(Change<'_, T>))
    where
        T: Clone + DeserializeOwned + fmt::Debug + Send + 'static,
    {
        self.watch_trimmed(api, config, |_| {}, on_change).await;
    }

    /// As [`Cache::watch`], and `trim` takes out of each object what nobody reads, before it is kept.
    pub async fn watch_trimmed(&self, api: Api<T>, config: watcher::Config, trim: impl Fn(&mut T) + Copy, on_change: impl Fn(Change<'_, T>))
    where
        T: Clone + DeserializeOwned + fmt::Debug + Send + 'static,
    {
        // Nobody reads managed fields, and they are often the larger part of an object. Emptied lists keep their memory, so they are replaced.
        let events = watcher(api, config).default_backoff().modify(move |object| {
            *object.managed_fields_mut() = Vec::new();
            trim(object);
        });
        self.follow(events, on_change).await;
    }

    /// Takes the events of a watch until it ends (it never does by itself). `on_change` is called after the cache has the change.
    pub async fn follow(&self, events: impl Stream<Item = watcher::Result<Event<T>>>, on_change: impl Fn(Change<'_, T>)) {
        let mut events = pin!(events);
        let mut listed = BTreeMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => {
                    listed.insert(Key::of(&object), Arc::new(object));
                }
                Ok(Event::InitDone) => self.replace(&std::mem::take(&mut listed), &on_change),
                Ok(Event::Apply(object)) => self.put(Key::of(&object), Some(&Arc::new(object)), &on_change),
                Ok(Event::Delete(object)) => self.put(Key::of(&object), None, &on_change),
                Err(error) => tracing::warn!(%error, "watch interrupted"),
            }
        }
    }

    fn put(&self, key: Key, new: Option<&Arc<T>>, on_change: &impl Fn(Change<'_, T>)) {
        let mut old = None;
        self.state.send_modify(|state| {
            old = match new {
                Some(object) => state.objects.insert(key, Arc::clone(object)),
                None => state.objects.remove(&key),
            };
        });
        if old.is_some() || new.is_some() {
            on_change(Change { old: old.as_deref(), new: new.map(AsRef::as_ref) });
        }
    }

    fn replace(&self, listed: &BTreeMap<Key, Arc<T>>, on_change: &impl Fn(Change<'_, T>)) {
        let mut before = BTreeMap::new();
        self.state.send_modify(|state| {
            before = std::mem::replace(&mut state.objects, listed.clone());
            state.lists += 1;
        });
        for (key, new) in listed {
            let old = before.remove(key);
            // A re-list after a broken watch repeats what is known.
            if old.as_ref().is_none_or(|o| o.meta().resource_version != new.meta().resource_version) {
                on_change(Change { old: old.as_deref(), new: Some(new) });
            }
        }
        for old in before.values() {
            on_change(Change { old: Some(old), new: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;

    use super::*;

    fn object(name: &str, version: &str) -> ConfigMap {
        let metadata = ObjectMeta { name: Some(name.into()), resource_version: Some(version.into()), ..ObjectMeta::default() };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    async fn changes(cache: &Cache<ConfigMap>, events: Vec<Event<ConfigMap>>) -> Vec<String> {
        let seen = RefCell::new(vec![]);
        let side = |o: Option<&ConfigMap>| o.map_or("-".to_owned(), |o| o.metadata.resource_version.clone().unwrap());
        let on_change = |change: Change<'_, ConfigMap>| {
            let name = change.new.or(change.old).unwrap().metadata.name.clone().unwrap();
            seen.borrow_mut().push(format!("{name} {}>{}", side(change.old), side(change.new)));
        };
        cache.follow(futures::stream::iter(events.into_iter().map(Ok)), on_change).await;
        seen.into_inner()
    }

    #[tokio::test]
    async fn a_relist_tells_what_was_missed_and_only_that() {
        let cache = Cache::default();
        let first = vec![Event::Init, Event::InitApply(object("a", "1")), Event::InitApply(object("b", "1")), Event::InitDone];
        assert_eq!(changes(&cache, first).await, ["a ->1", "b ->1"]);
        let again = vec![Event::Init, Event::InitApply(object("a", "1")), Event::InitApply(object("c", "1")), Event::InitDone];
        assert_eq!(changes(&cache, again).await, ["c ->1", "b 1>-"]);
    }

    #[tokio::test]
    async fn a_list_after_a_broken_watch_is_told_of_even_when_nothing_changed() {
        let cache = Cache::default();
        let told = std::cell::Cell::new(0);
        let mut listening = std::pin::pin!(cache.each_relist(|| told.set(told.get() + 1)));
        let mut poll = async || futures::poll!(listening.as_mut());
        assert!(poll().await.is_pending());
        changes(&cache, vec![Event::Init, Event::InitDone, Event::Apply(object("a", "1"))]).await;
        assert!(poll().await.is_pending());
        assert_eq!(told.get(), 0, "the first list and a change are no such list");
        for lists in 1..=2 {
            changes(&cache, vec![Event::Init, Event::InitApply(object("a", "1")), Event::InitDone]).await;
            assert!(poll().await.is_pending());
            assert_eq!(told.get(), lists);
        }
    }

    #[tokio::test]
    async fn changes_give_both_sides_after_the_cache_has_them() {
        let cache = Cache::default();
        let events = vec![Event::Apply(object("a", "1")), Event::Apply(object("a", "2")), Event::Delete(object("a", "2"))];
        assert_eq!(changes(&cache, events).await, ["a ->1", "a 1>2", "a 2>-"]);
        assert!(cache.list().is_empty());
    }

    #[tokio::test]
    async fn a_cache_is_not_ready_before_its_first_list_is_complete() {
        let cache = Cache::default();
        changes(&cache, vec![Event::Init, Event::InitApply(object("a", "1"))]).await;
        assert!(futures::FutureExt::now_or_never(cache.ready()).is_none());
        changes(&cache, vec![Event::Init, Event::InitDone]).await;
        assert!(futures::FutureExt::now_or_never(cache.ready()).is_some());
    }
}
