"""How the charts of these programs look, for `matplotlib.rc_context`."""

STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.grid": True,
    "grid.color": "#d8dee4",
    "axes.edgecolor": "#d8dee4",
    "legend.frameon": False,
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499")
"""After Okabe and Ito: told apart by colour-blind eyes."""
