"use strict";

// Lists keep their newest items.
const SHOWN_MAX = 6;
const list = (id) => document.getElementById(id);

function show(id, ...parts) {
  const item = document.createElement("li");
  item.append(...parts);
  list(id).querySelector(".quiet")?.remove();
  list(id).prepend(item);
  while (list(id).children.length > SHOWN_MAX) list(id).lastElementChild.remove();
}

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

const events = new EventSource("/events");
events.onmessage = ({ data }) => {
  const said = JSON.parse(data);
  const version = said.version ? element("b", said.version, `tag ${said.version}`) : element("b", "no answer", "tag bad");
  show("events", element("time", said.time), version, element("span", said.instance ?? said.error));
};

const form = document.getElementById("say");
const words = document.getElementById("words");
const socket = new WebSocket(`wss://${location.host}/echo`);
socket.onopen = () => { form.querySelector("button").disabled = false; };
socket.onmessage = ({ data }) => show("heard", data);
socket.onclose = () => {
  form.querySelector("button").disabled = true;
  show("heard", element("span", "The connection has ended; load the page again.", "quiet"));
};
form.onsubmit = (event) => {
  event.preventDefault();
  if (words.value === "") return;
  socket.send(words.value);
  words.value = "";
};

document.getElementById("origin").textContent = location.origin;
