//! Aligned tables, without borders and colours, as kubectl users know them.

use comfy_table::{ContentArrangement, Table};
use serde_json::Value;

/// Space between columns.
const GAP: u16 = 3;
/// A cell longer than this is cut; `-o json` has the whole.
const CELL_CHARACTERS_MAX: usize = 90;

/// A table under construction: a heading per column, and where in each JSON row its cell comes from.
pub(crate) struct Columns {
    heads: Vec<String>,
    paths: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Columns {
    /// Columns as `(heading, path)`; a path is field names separated by `.`.
    pub(crate) fn new(columns: &[(&str, &str)]) -> Self {
        Self {
            heads: columns.iter().map(|(head, _)| (*head).to_owned()).collect(),
            paths: columns.iter().map(|(_, path)| (*path).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// One column for each field of the rows, `first` in front where present, the rest in the order of their names.
    pub(crate) fn of(rows: &[Value], first: &[&str]) -> Self {
        let mut fields: Vec<&str> = first.iter().copied().filter(|field| rows.iter().any(|row| row.get(field).is_some())).collect();
        for field in rows.iter().filter_map(Value::as_object).flat_map(|row| row.keys()) {
            if !fields.contains(&field.as_str()) {
                fields.push(field);
            }
        }
        let heads: Vec<(String, &str)> = fields.iter().map(|field| (field.to_uppercase().replace('_', " "), *field)).collect();
        let borrowed: Vec<(&str, &str)> = heads.iter().map(|(head, field)| (head.as_str(), *field)).collect();
        Self::new(&borrowed)
    }

    /// Adds a row from a JSON object.
    pub(crate) fn row(&mut self, row: &Value) -> &mut Self {
        let cells = self.paths.iter().map(|path| cell(path.split('.').try_fold(row, |value, field| value.get(field)))).collect();
        self.rows.push(cells);
        self
    }

    /// Adds a row of finished cells.
    pub(crate) fn cells<const N: usize>(&mut self, cells: [String; N]) -> &mut Self {
        self.rows.push(cells.into_iter().map(|text| cut(&text)).collect());
        self
    }

    /// The table as text; what to say when there is no row.
    pub(crate) fn render(&self, when_empty: &str) -> String {
        if self.rows.is_empty() {
            return when_empty.to_owned();
        }
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(&self.heads);
        table.add_rows(&self.rows);
        for index in 0..self.heads.len() {
            if let Some(column) = table.column_mut(index) {
                column.set_padding((0, GAP));
            }
        }
        table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }
}

fn cell(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) if text.is_empty() => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(yes)) => (if *yes { "yes" } else { "no" }).to_owned(),
        Some(Value::Array(items)) if items.is_empty() => "-".to_owned(),
        Some(Value::Array(items)) => items.iter().map(|item| cell(Some(item))).collect::<Vec<_>>().join(", "),
        Some(Value::Object(fields)) if fields.is_empty() => "-".to_owned(),
        Some(Value::Object(fields)) if fields.contains_key("kind") && fields.contains_key("name") => object(fields),
        Some(Value::Object(fields)) if fields.contains_key("cluster") => backend(fields),
        Some(other) => other.to_string(),
    };
    cut(&text)
}

/// An object of the mesh named in a list: `HTTPRoute shop/catalog changed`.
fn object(fields: &serde_json::Map<String, Value>) -> String {
    let field = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let slash = if field("namespace").is_empty() { "" } else { "/" };
    let text = format!("{} {}{slash}{} {}", field("kind"), field("namespace"), field("name"), field("result"));
    text.trim_end().to_owned()
}

/// A route's backend in a list: `shop/catalog-v1:80 (90)`, or what is answered in its place.
fn backend(fields: &serde_json::Map<String, Value>) -> String {
    let field = |name: &str| fields.get(name).filter(|value| !value.is_null()).map(|value| cell(Some(value)));
    let target = field("cluster").or_else(|| field("reply")).unwrap_or_else(|| "-".to_owned());
    field("weight").map_or_else(|| target.clone(), |weight| format!("{target} ({weight})"))
}

fn cut(text: &str) -> String {
    let line = text.replace('\n', " ");
    if line.chars().count() <= CELL_CHARACTERS_MAX {
        return line;
    }
    line.chars().take(CELL_CHARACTERS_MAX - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Aim: columns stand under their headings, absent values are a dash, lines have no trailing blanks.
    #[test]
    fn tables_are_aligned() {
        let mut table = Columns::new(&[("NAME", "name"), ("PODS", "pods"), ("READY", "status.ready")]);
        table.row(&json!({"name": "catalog", "pods": [1, 2], "status": {"ready": true}})).row(&json!({"name": "a"}));
        assert_eq!(table.render("none"), "NAME      PODS   READY\ncatalog   1, 2   yes\na         -      -\n");
        assert_eq!(Columns::new(&[("NAME", "name")]).render("none"), "none");
    }

    /// Aim: rows of unknown shape still make a table, with the fields that matter in front.
    #[test]
    fn unknown_rows_make_a_table() {
        let rows = [json!({"b": 1, "name": "x"}), json!({"c": {"d": 2}, "name": "y"})];
        let mut table = Columns::of(&rows, &["name", "absent"]);
        rows.iter().for_each(|row| {
            table.row(row);
        });
        assert_eq!(table.render(""), "NAME   B   C\nx      1   -\ny      -   {\"d\":2}\n");
    }

    /// Aim: objects in a list read as people name them.
    #[test]
    fn objects_in_a_list_are_named() {
        let list = json!([{"kind": "HTTPRoute", "namespace": "shop", "name": "catalog", "result": "changed"}, {"kind": "Namespace", "name": "shop"}]);
        assert_eq!(cell(Some(&list)), "HTTPRoute shop/catalog changed, Namespace shop");
    }

    /// Aim: backends of a route read with their weights.
    #[test]
    fn backends_have_their_weight() {
        let list = json!([{"cluster": "shop/catalog-v1:80", "reply": null, "stages": [], "weight": 90}, {"cluster": null, "weight": 10}]);
        assert_eq!(cell(Some(&list)), "shop/catalog-v1:80 (90), - (10)");
    }

    /// Aim: a long cell is cut, never wrapped.
    #[test]
    fn long_cells_are_cut() {
        assert_eq!(cut(&"x".repeat(500)).chars().count(), CELL_CHARACTERS_MAX);
    }
}
