//! Accuracy against cost: a log axis, the Pareto front, and labels that do not overlap.
//!
//! Coordinates are those of the drawing's view box. Here never lives: colours (`style.css`), markup (`template.html`).

use serde::Serialize;

use crate::bench::report::{MethodFigure, smaller_is_better};

/// Size of the view box.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 420.0;
/// The field where dots may be.
const LEFT: f64 = 58.0;
const RIGHT: f64 = WIDTH - 20.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = HEIGHT - 56.0;
/// Room left of the log axis for methods that cost nothing.
const FREE: f64 = 52.0;
/// Room between the outermost dots and the edge of the field.
const INSET: f64 = 16.0;
/// Size of labels, and the width of a letter of that size (measured for the page's sans-serif letters, rounded up).
const LABEL: f64 = 13.0;
const LETTER: f64 = 7.3;
const DOT: f64 = 5.0;

/// What an axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// 1 B, 1 kB, …
    Bytes,
    /// Seconds.
    Seconds,
}

/// A plot, laid out.
#[derive(Debug, Serialize)]
pub struct Plot {
    title: String,
    x_name: String,
    y_name: String,
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x_ticks: Vec<(f64, String)>,
    y_ticks: Vec<(f64, String)>,
    /// Where the log axis begins, if some methods stand left of it.
    free: Option<f64>,
    front: String,
    dots: Vec<Dot>,
}

#[derive(Debug, Serialize)]
struct Dot {
    x: f64,
    y: f64,
    class: &'static str,
    title: String,
    label: Option<Label>,
}

#[derive(Clone, Debug, Serialize)]
struct Label {
    x: f64,
    y: f64,
    anchor: &'static str,
    text: String,
    #[serde(skip)]
    area: Area,
}

#[derive(Clone, Copy, Debug)]
struct Area {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Area {
    fn meets(&self, other: &Self) -> bool {
        self.left < other.right && other.left < self.right && self.top < other.bottom && other.top < self.bottom
    }

    fn around(x: f64, y: f64) -> Self {
        Self { left: x - DOT, right: x + DOT, top: y - DOT, bottom: y + DOT }
    }
}

/// Lays out the methods that have a value; `None` with fewer than two.
pub fn plot(
    methods: &[&MethodFigure],
    y_name: &str,
    x_name: &str,
    unit: Unit,
    cost: impl Fn(&MethodFigure) -> f64,
) -> Option<Plot> {
    let points: Vec<(&MethodFigure, f64, f64)> =
        methods.iter().filter_map(|m| Some((*m, cost(m).max(0.0), m.value?))).collect();
    if points.len() < 2 {
        return None;
    }
    let less = smaller_is_better(&points[0].0.metric);
    let free = points.iter().any(|p| p.1 == 0.0);
    let (x, x_ticks) = log_axis(points.iter().map(|p| p.1), if free { LEFT + FREE } else { LEFT }, unit);
    let (y, y_ticks) = value_axis(points.iter().map(|p| p.2), less);
    let place = |cost: f64| if cost == 0.0 { LEFT + FREE / 2.0 } else { x.at(cost.log10()) };
    let on_front = front(&points, less);
    let mut dots: Vec<Dot> = points
        .iter()
        .enumerate()
        .map(|(i, (m, cost, value))| Dot {
            x: rounded(place(*cost)),
            y: rounded(y.at(*value)),
            class: match (on_front.contains(&i), m.control) {
                (true, false) => "front",
                (true, true) => "front control",
                (false, true) => "control",
                (false, false) => "plain",
            },
            title: format!("{}: {value:.3} at {}", m.name, written(*cost, unit)),
            label: None,
        })
        .collect();
    let line: Vec<String> = on_front.iter().map(|&i| format!("{},{}", dots[i].x, dots[i].y)).collect();
    // The front's names first: they get the best places.
    let mut order = on_front.clone();
    order.extend((0..points.len()).filter(|i| !on_front.contains(i)));
    let mut taken: Vec<Area> = dots.iter().map(|dot| Area::around(dot.x, dot.y)).collect();
    for i in order {
        let label = label(&points[i].0.name, dots[i].x, dots[i].y, i, &taken);
        taken.extend(label.as_ref().map(|label| label.area));
        dots[i].label = label;
    }
    let direction = if less { ", less is better" } else { "" };
    Some(Plot {
        title: format!("{y_name} against {}", x_name.to_lowercase().replace("cpu", "CPU")),
        x_name: x_name.to_owned(),
        y_name: format!("{y_name}{direction}"),
        width: WIDTH,
        height: HEIGHT,
        left: LEFT,
        right: RIGHT,
        top: TOP,
        bottom: BOTTOM,
        x_ticks,
        y_ticks,
        free: free.then_some(LEFT + FREE),
        front: line.join(" "),
        dots,
    })
}

/// Indices of the points that no other point beats in both respects, from the cheapest on; the first of equals.
fn front(points: &[(&MethodFigure, f64, f64)], less: bool) -> Vec<usize> {
    let merit = |i: usize| if less { -points[i].2 } else { points[i].2 };
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|&a, &b| points[a].1.total_cmp(&points[b].1).then(merit(b).total_cmp(&merit(a))).then(a.cmp(&b)));
    let mut out: Vec<usize> = Vec::new();
    for i in order {
        if out.last().is_none_or(|&last| merit(i) > merit(last)) {
            out.push(i);
        }
    }
    out
}

/// A linear map from `[from, to]` to `[start, end]` of the drawing.
struct Map {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Map {
    fn at(&self, value: f64) -> f64 {
        self.start + (value - self.from) / (self.to - self.from) * (self.end - self.start)
    }
}

fn log_axis(costs: impl Iterator<Item = f64>, start: f64, unit: Unit) -> (Map, Vec<(f64, String)>) {
    let logs = costs.filter(|&c| c > 0.0).map(f64::log10);
    let (low, high) = logs.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    // At least one decade, so that equal costs have a place; none at all: any decade will do.
    let (low, high) = match () {
        () if low > high => (0.0, 1.0),
        // Fewer than two whole decades between the costs would leave the axis without names.
        () if high.floor() - low.ceil() < 1.0 => (low.floor(), high.ceil().max(low.floor() + 1.0)),
        () => (low, high),
    };
    let map = Map { from: low, to: high, start: start + INSET, end: RIGHT - INSET };
    let (first, last) = (low.ceil() as i32, high.floor() as i32);
    let step = ((last - first) / 6 + 1).max(1);
    let ticks = (first..=last).filter(|e| (e - first) % step == 0);
    let ticks = ticks.map(|e| (rounded(map.at(f64::from(e))), written(10f64.powi(e), unit))).collect();
    (map, ticks)
}

fn value_axis(values: impl Iterator<Item = f64>, less: bool) -> (Map, Vec<(f64, String)>) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let step = match high - low {
        d if d > 0.8 => 0.2,
        d if d > 0.3 => 0.1,
        d if d > 0.1 => 0.05,
        _ => 0.02,
    };
    let (from, to) = ((low / step).floor() * step, (high / step).ceil() * step);
    let to = if to > from { to } else { from + step };
    let (start, end) = if less { (TOP + INSET, BOTTOM - INSET) } else { (BOTTOM - INSET, TOP + INSET) };
    let map = Map { from, to, start, end };
    let n = ((to - from) / step).round() as i32;
    let tick = |i: i32| {
        let value = from + f64::from(i) * step;
        // Rounding may leave a zero with a sign.
        let value = if value.abs() < step / 2.0 { 0.0 } else { value };
        (rounded(map.at(value)), format!("{value:.2}").replace('-', "−"))
    };
    let ticks = (0..=n).map(tick).collect();
    (map, ticks)
}

fn written(cost: f64, unit: Unit) -> String {
    match (unit, cost) {
        (Unit::Bytes, 0.0) => "nothing kept".into(),
        (Unit::Bytes, c) if c < 1e3 => format!("{} B", short(c)),
        (Unit::Bytes, c) if c < 1e6 => format!("{} kB", short(c / 1e3)),
        (Unit::Bytes, c) => format!("{} MB", short(c / 1e6)),
        (Unit::Seconds, c) => format!("{} s", short(c)),
    }
}

/// At most two digits behind the point, none that say nothing.
fn short(value: f64) -> String {
    let text = if value < 0.01 { format!("{value:.3}") } else { format!("{value:.2}") };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn rounded(v: f64) -> f64 {
    (v * 10.0).round() / 10.0
}

/// A place for a name beside its dot that meets no other dot or name and lies in the field; `None` if there is none (the dot
/// then has its name in the table and as a tool tip alone).
fn label(text: &str, x: f64, y: f64, own: usize, taken: &[Area]) -> Option<Label> {
    let width = LETTER * text.chars().count() as f64;
    let side = DOT + 4.0;
    let places = [
        (side, 0.0, "start"),
        (-side, 0.0, "end"),
        (0.0, -(DOT + 6.0), "middle"),
        (0.0, DOT + 13.0, "middle"),
        (side, -10.0, "start"),
        (side, 10.0, "start"),
        (-side, -10.0, "end"),
        (-side, 10.0, "end"),
        (0.0, -(DOT + 20.0), "middle"),
        (0.0, DOT + 27.0, "middle"),
    ];
    places.into_iter().find_map(|(dx, dy, anchor)| {
        let middle = y + dy;
        let left = x + dx
            - match anchor {
                "start" => 0.0,
                "end" => width,
                _ => width / 2.0,
            };
        let area = Area { left, right: left + width, top: middle - LABEL / 2.0, bottom: middle + LABEL / 2.0 };
        let inside = area.left >= LEFT + 2.0 && area.right <= RIGHT && area.top >= TOP - 14.0 && area.bottom <= BOTTOM;
        let clear = taken.iter().enumerate().all(|(i, other)| i == own || !area.meets(other));
        (inside && clear).then(|| Label {
            x: rounded(x + dx),
            // The text stands on its baseline, a third of a letter below the middle.
            y: rounded(middle + LABEL / 3.0),
            anchor,
            text: text.to_owned(),
            area,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(name: &str, metric: &str, value: f64, cost: f64) -> MethodFigure {
        MethodFigure { value: Some(value), bytes_per_example: cost, ..MethodFigure::new(name, metric) }
    }

    fn laid_out(methods: &[MethodFigure]) -> Plot {
        let refs: Vec<&MethodFigure> = methods.iter().collect();
        plot(&refs, "LDS", "Bytes kept per example", Unit::Bytes, |m| m.bytes_per_example).unwrap()
    }

    #[test]
    fn the_front_is_what_nobody_beats() {
        let of = |metric: &str| {
            [("a", 0.3, 0.0), ("b", 0.2, 10.0), ("c", 0.5, 100.0), ("d", 0.5, 50.0), ("e", 0.6, 1e6)]
                .map(|(name, value, cost)| method(name, metric, value, cost))
        };
        let names = |metric: &str, less| {
            let methods = of(metric);
            let points: Vec<_> = methods.iter().map(|m| (m, m.bytes_per_example, m.value.unwrap())).collect();
            front(&points, less).iter().map(|&i| methods[i].name.clone()).collect::<String>()
        };
        assert_eq!(names("lds", false), "ade");
        assert_eq!(names("tv_shapley", true), "ab");
    }

    #[test]
    fn everything_lies_in_the_field_and_no_label_meets_another() {
        // A crowd: forty methods whose values and costs lie close together.
        let methods: Vec<MethodFigure> = (0..40)
            .map(|i| {
                let value = 0.5 + 0.3 * f64::from(i * 7 % 40) / 40.0;
                method(&format!("method-number-{i}"), "lds", value, 10f64.powf(f64::from(i % 8) / 2.0))
            })
            .collect();
        let plot = laid_out(&methods);
        let labels: Vec<&Label> = plot.dots.iter().filter_map(|dot| dot.label.as_ref()).collect();
        assert!(labels.len() >= 8, "{}", labels.len());
        for (i, a) in labels.iter().enumerate() {
            assert!(a.area.left >= LEFT && a.area.right <= RIGHT && a.area.bottom <= BOTTOM, "{a:?}");
            assert!(labels[..i].iter().all(|b| !a.area.meets(&b.area)), "{a:?}");
        }
        assert!(plot.dots.iter().all(|d| (LEFT..=RIGHT).contains(&d.x) && (TOP..=BOTTOM).contains(&d.y)));
    }

    #[test]
    fn nothing_kept_stands_apart_and_axes_name_decades() {
        let plot =
            laid_out(&[method("a", "lds", 0.1, 0.0), method("b", "lds", -0.05, 40.0), method("c", "lds", 0.4, 4e6)]);
        assert_eq!(plot.free, Some(LEFT + FREE));
        assert!(plot.dots[0].x < LEFT + FREE && plot.dots[1].x > LEFT + FREE);
        let names: Vec<&str> = plot.x_ticks.iter().map(|t| t.1.as_str()).collect();
        assert_eq!(names, ["100 B", "1 kB", "10 kB", "100 kB", "1 MB"]);
        let names: Vec<&str> = plot.y_ticks.iter().map(|t| t.1.as_str()).collect();
        assert_eq!(names, ["−0.10", "0.00", "0.10", "0.20", "0.30", "0.40"]);
        assert!(plot.dots[2].y < plot.dots[1].y, "better is higher");
        // All for nothing, and one alone.
        assert_eq!(laid_out(&[method("a", "lds", 0.1, 0.0), method("b", "lds", 0.1, 0.0)]).dots.len(), 2);
        let one = [method("a", "lds", 0.1, 0.0)];
        assert!(super::plot(&[&one[0]], "LDS", "x", Unit::Bytes, |_| 1.0).is_none());
    }
}
