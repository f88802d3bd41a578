import './style.css';

const pages = { '/': 'Welcome', '/about': 'Built with Vite, served as files' };
document.querySelector('#app').textContent = pages[location.pathname] ?? 'Nothing here';
