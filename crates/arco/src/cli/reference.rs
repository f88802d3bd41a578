//! `APP` or `APP/COMPONENT`, as people write it.

use arco_model::name::{ApplicationName, ComponentName};
use std::str::FromStr;

/// An application, or a component of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Reference {
    /// Application.
    pub(crate) application: String,
    /// Component, when one is named.
    pub(crate) component: Option<String>,
}

impl FromStr for Reference {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (application, component) = match text.split_once('/') {
            Some((application, component)) => (application, Some(component)),
            None => (text, None),
        };
        ApplicationName::new(application).map_err(|it| it.to_string())?;
        if let Some(component) = component {
            ComponentName::new(component).map_err(|it| it.to_string())?;
        }
        Ok(Self { application: application.to_owned(), component: component.map(str::to_owned) })
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.component {
            Some(component) => write!(f, "{}/{component}", self.application),
            None => f.write_str(&self.application),
        }
    }
}

/// A component by application and name, resolved.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Named {
    /// Application.
    pub(crate) application: String,
    /// Component.
    pub(crate) component: String,
}

impl Named {
    /// As the client wants it.
    pub(crate) fn pair(&self) -> (&str, &str) {
        (&self.application, &self.component)
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.application, self.component)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_names_with_at_most_one_slash() {
        assert_eq!("a/b".parse::<Reference>().unwrap().to_string(), "a/b");
        assert_eq!("a".parse::<Reference>().unwrap().component, None);
        for bad in ["", "/", "a/", "/b", "a/b/c", "A", "a b", "--x"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
