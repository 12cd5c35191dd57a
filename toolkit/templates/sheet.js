"use strict";
(function () {
  var sheet = document.body.dataset.sheet;
  var place = "review-" + sheet;
  var items = Array.from(document.querySelectorAll(".item"));
  var byId = document.getElementById.bind(document);
  var choices = ["first", "second", "same", "unsafe"];
  var state = { name: "", at: 0, votes: {} };
  var kept = false; // whether this browser keeps the progress: some do not, for a page that is opened from a file
  var unsaved = false;

  function vote(number) {
    if (!Object.prototype.hasOwnProperty.call(state.votes, number)) state.votes[number] = { vote: "", comment: "" };
    return state.votes[number];
  }

  function take(value) {
    // Whatever was stored or loaded: what has another form is left out.
    var found = { name: "", at: 0, votes: {} };
    if (!value || typeof value !== "object") return found;
    if (typeof value.name === "string") found.name = value.name.slice(0, 100);
    if (Number.isInteger(value.at) && value.at >= 0 && value.at < items.length) found.at = value.at;
    items.forEach(function (item) {
      var number = item.dataset.item;
      var one = value.votes && value.votes[number];
      if (!one || typeof one !== "object") return;
      found.votes[number] = {
        vote: choices.includes(one.vote) ? one.vote : "",
        comment: typeof one.comment === "string" ? one.comment.slice(0, 5000) : "",
      };
    });
    return found;
  }

  function restore() {
    try {
      localStorage.setItem(place + "-test", "1");
      localStorage.removeItem(place + "-test");
      kept = true;
      var text = localStorage.getItem(place);
      if (text) state = take(JSON.parse(text));
    } catch (problem) {
      kept = kept && problem instanceof SyntaxError;
    }
    byId("no-storage").hidden = kept;
  }

  function keep() {
    unsaved = true;
    if (!kept) return;
    try {
      localStorage.setItem(place, JSON.stringify(state));
    } catch (problem) {
      kept = false;
      byId("no-storage").hidden = false;
    }
  }

  function say(text) {
    byId("status").textContent = text;
  }

  function voted() {
    return items.filter(function (item) { return vote(item.dataset.item).vote; }).length;
  }

  function count() {
    byId("count").textContent = voted() + " of " + items.length + " have your vote";
    byId("done").value = voted();
  }

  function show(index, focus) {
    state.at = index;
    items.forEach(function (item, other) { item.hidden = other !== index; });
    byId("previous").disabled = index === 0;
    byId("next").disabled = index === items.length - 1;
    count();
    if (focus) {
      var title = items[index].querySelector("h2");
      title.focus({ preventScroll: true });
      // What stays at the top covers nothing, however many lines its buttons take.
      document.documentElement.style.scrollPaddingTop = document.querySelector("nav").offsetHeight + 8 + "px";
      title.scrollIntoView({ block: "start" });
    }
  }

  function fill() {
    byId("name").value = state.name;
    items.forEach(function (item) {
      var one = vote(item.dataset.item);
      item.querySelectorAll("input").forEach(function (input) { input.checked = input.value === one.vote; });
      item.querySelector("textarea").value = one.comment;
    });
    show(state.at, false);
  }

  function go(index) {
    if (index < 0 || index >= items.length) return;
    show(index, true);
    keep();
  }

  function nextOpen() {
    for (var step = 1; step <= items.length; step += 1) {
      var index = (state.at + step) % items.length;
      if (!vote(items[index].dataset.item).vote) return go(index);
    }
    say("Every pair has your vote. Save them now.");
    byId("save").focus();
  }

  function save() {
    var name = state.name.trim();
    var field = byId("name");
    if (!name) {
      field.setAttribute("aria-invalid", "true");
      say("Please write your name first, at the top of the page.");
      field.focus();
      return;
    }
    field.removeAttribute("aria-invalid");
    var votes = items.map(function (item) {
      var one = vote(item.dataset.item);
      return { item: Number(item.dataset.item), vote: one.vote || null, comment: one.comment };
    });
    var content = { version: 1, sheet: sheet, name: name, items: items.length, votes: votes };
    var part = name.normalize("NFC").replace(/[^\p{L}\p{M}\p{N}._-]+/gu, "-").replace(/^[-.]+|[-.]+$/g, "");
    var file = "votes-" + (Array.from(part).slice(0, 60).join("") || "unnamed") + ".json";
    var link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
    link.download = file;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 60000);
    unsaved = false;
    var open = items.length - voted();
    say("Saved as " + file + (open ? ": " + open + " of " + items.length + " pairs have no vote yet." : "."));
  }

  function load(file) {
    file.text().then(function (text) {
      var found = JSON.parse(text);
      if (!found || found.sheet !== sheet || !Array.isArray(found.votes)) {
        say("That file is of another sheet. Nothing was changed.");
        return;
      }
      var votes = {};
      found.votes.forEach(function (one) { if (one) votes[one.item] = one; });
      state = take({ name: found.name, at: 0, votes: votes });
      fill();
      keep();
      say("Continued from " + file.name + ".");
    }).catch(function () { say("That file cannot be read. Nothing was changed."); });
  }

  function clear() {
    if (!confirm("Remove your name, all votes and all comments from this browser? Save them first if you need them.")) {
      return;
    }
    state = take(null);
    try {
      localStorage.removeItem(place);
    } catch (problem) {
      // Nothing is kept there.
    }
    unsaved = false;
    fill();
    say("Everything was removed.");
  }

  document.addEventListener("input", function (event) {
    var item = event.target.closest(".item");
    if (event.target.id === "name") {
      state.name = event.target.value;
    } else if (item && event.target.type === "radio") {
      vote(item.dataset.item).vote = event.target.value;
    } else if (item) {
      vote(item.dataset.item).comment = event.target.value;
    } else {
      return;
    }
    keep();
    count();
  });

  document.addEventListener("keydown", function (event) {
    if (!byId("keys").checked || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.matches("textarea, input[type=text], input[type=file]")) return;
    var key = event.key.toLowerCase();
    if (key === "n") go(state.at + 1);
    else if (key === "p") go(state.at - 1);
    else if (["1", "2", "3", "4"].includes(key)) {
      items[state.at].querySelectorAll("input")[Number(key) - 1].click();
    } else return;
    event.preventDefault();
  });

  window.addEventListener("beforeunload", function (event) {
    if (unsaved && !kept) event.preventDefault();
  });
  window.addEventListener("storage", function (event) {
    // The same sheet in a second window: both go on with what was entered last.
    if (event.key !== place || !event.newValue) return;
    var at = state.at;
    try {
      state = take(JSON.parse(event.newValue));
    } catch (problem) {
      return;
    }
    state.at = at;
    fill();
  });

  byId("previous").addEventListener("click", function () { go(state.at - 1); });
  byId("next").addEventListener("click", function () { go(state.at + 1); });
  byId("open").addEventListener("click", nextOpen);
  byId("save").addEventListener("click", save);
  byId("clear").addEventListener("click", clear);
  byId("load").addEventListener("change", function (event) {
    if (event.target.files.length) load(event.target.files[0]);
    event.target.value = "";
  });

  restore();
  fill();
})();
