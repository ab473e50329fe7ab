//! The tools of this worker as they are now. Plugins come and go while it runs; who holds the toolbox sees the present
//! [`Registry`], and may wait for the next one, to tell others.

use std::sync::Arc;

use tokio::sync::watch;

use crate::registry::{self, Registry, Tool};

/// Holds the present registry. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Toolbox(Arc<watch::Sender<Arc<Registry>>>);

impl Toolbox {
    /// Begins with these tools.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(registry))))
    }

    /// The present tools. A call that has begun keeps what it got here.
    #[must_use]
    pub fn now(&self) -> Arc<Registry> {
        self.0.borrow().clone()
    }

    /// Adds a tool.
    ///
    /// # Errors
    /// It is not well formed, or its name is taken; nothing has changed then.
    pub fn add(&self, tool: Tool) -> Result<(), registry::Error> {
        self.change(|registry| registry.with(tool))
    }

    /// Removes a tool, if it is there. Calls that have begun are carried out to their end.
    pub fn remove(&self, name: &str) {
        self.0.send_if_modified(|registry| {
            let there = registry.tool(name).is_some();
            if there {
                *registry = Arc::new(registry.without(name));
            }
            there
        });
    }

    /// Makes another registry of the present one, at once: nobody sees half of a change.
    ///
    /// # Errors
    /// Those of `change`; nothing has changed then.
    pub fn change<E>(&self, change: impl FnOnce(&Registry) -> Result<Registry, E>) -> Result<(), E> {
        let mut outcome = Ok(());
        self.0.send_if_modified(|registry| match change(registry) {
            Ok(changed) => {
                *registry = Arc::new(changed);
                true
            }
            Err(error) => {
                outcome = Err(error);
                false
            }
        });
        outcome
    }

    /// Is told of every change from now on.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Registry>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::SideEffect;

    fn named(name: &str) -> Tool {
        let like = Registry::built_in().tool("read_file").cloned().unwrap();
        Tool { name: name.to_owned(), effect: SideEffect::ActsElsewhere, ..like }
    }

    #[test]
    fn a_tool_that_comes_or_goes_is_seen_by_all_and_by_no_call_that_has_begun() {
        let toolbox = Toolbox::new(Registry::built_in());
        let (elsewhere, mut changes, begun) = (toolbox.clone(), toolbox.changes(), toolbox.now());
        toolbox.add(named("deploy")).unwrap();
        assert!(changes.has_changed().unwrap() && changes.borrow_and_update().tool("deploy").is_some());
        assert!(elsewhere.now().check("deploy", r#"{"path": "a"}"#).is_ok());
        assert!(begun.tool("deploy").is_none());
        let checked = elsewhere.now().check("deploy", r#"{"path": "a"}"#).unwrap();
        elsewhere.remove("deploy");
        assert!(changes.has_changed().unwrap() && toolbox.now().tool("deploy").is_none());
        assert_eq!(checked.tool().name, "deploy");
    }

    #[test]
    fn a_change_that_fails_changes_nothing() {
        let toolbox = Toolbox::new(Registry::built_in());
        let mut changes = toolbox.changes();
        let taken = toolbox.add(named("read_file")).unwrap_err();
        assert_eq!(taken.to_string(), "tool read_file: there is one of that name already");
        toolbox.remove("nothing");
        assert!(!changes.has_changed().unwrap());
        assert_eq!(changes.borrow_and_update().listing(), Registry::built_in().listing());
    }
}
